"use strict";
(() => {
  for (const element of document.querySelectorAll("[data-needs-script]")) element.hidden = false;
  const root = document.getElementById("groups");
  if (root) {
    const query = document.getElementById("query");
    const found = document.getElementById("found");
    const groups = [...root.querySelectorAll(".group")];
    const branches = [...root.querySelectorAll(".branch")].reverse();
    const said = (group) => [...group.querySelectorAll(".name, .tag, dd:not(.quiet)")].map((part) => part.firstChild.textContent).join(" ");
    const texts = new Map(groups.map((group) => [group, said(group).toLowerCase()]));
    const wereOpen = new Map();
    const filter = () => {
      const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length && !wereOpen.size) for (const branch of branches) wereOpen.set(branch, branch.open);
      let count = 0;
      for (const group of groups) {
        group.hidden = !words.every((word) => texts.get(group).includes(word));
        count += !group.hidden;
      }
      for (const branch of branches) {
        branch.hidden = !branch.querySelector(".group:not([hidden])");
        branch.open = words.length ? !branch.hidden : (wereOpen.get(branch) ?? branch.open);
      }
      if (!words.length) wereOpen.clear();
      found.textContent = words.length ? `${count} of ${groups.length} groups` : `${groups.length} groups`;
    };
    query.addEventListener("input", filter);
    query.form.addEventListener("submit", (event) => event.preventDefault());
    const setAll = (open) => {
      for (const element of [...groups, ...branches]) if (!element.hidden) element.open = open;
    };
    document.getElementById("expand").addEventListener("click", () => setAll(true));
    document.getElementById("collapse").addEventListener("click", () => setAll(false));
    const reveal = () => {
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (!target || !target.matches(".group")) return;
      if (target.hidden) {
        query.value = "";
        filter();
      }
      for (let up = target; up && up !== root; up = up.parentElement) if (up.matches("details")) up.open = true;
      target.scrollIntoView({ block: "nearest" });
      target.querySelector("summary").focus();
    };
    addEventListener("hashchange", reveal);
    reveal();
  }
})();
