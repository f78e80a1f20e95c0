"""Sequences without attention: recurrent, causal convolutions, a state space, a graph."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .. import Call
from .inputs import sequence, token_ids


class LSTMTagger(nn.Module):
    def __init__(self, vocabulary: int = 32, width: int = 16, hidden: int = 12, tags: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.hidden2tag = nn.Linear(2 * hidden, tags)

    def forward(self, sentence: Tensor) -> Tensor:
        embeds = self.embedding(sentence)
        out, _ = self.lstm(embeds)
        return F.log_softmax(self.hidden2tag(out), dim=-1)


class GRUTagger(nn.Module):
    def __init__(self, vocabulary: int = 32, width: int = 16, hidden: int = 12, tags: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(0.1)
        self.gru = nn.GRU(width, hidden, num_layers=2, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, tags)

    def forward(self, sentence: Tensor) -> Tensor:
        out, _ = self.gru(self.dropout(self.embedding(sentence)))
        return self.classifier(self.norm(out))


class ProjectedLSTM(nn.Module):
    """Two layers whose states are projected (Sak et al. 2014), the last state classified."""

    def __init__(self, width: int = 8, hidden: int = 16, projected: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 12)
        self.lstm = nn.LSTM(12, hidden, num_layers=2, batch_first=True, proj_size=projected)
        self.fc = nn.Sequential(nn.Linear(projected, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        _, (h_n, _) = self.lstm(torch.relu(self.inputs(x)))
        return self.fc(h_n[-1])


class LSTMCellDecoder(nn.Module):
    """A cell stepped by a python loop, its states made with zeros."""

    def __init__(self, width: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTMCell(width, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden, dtype=x.dtype, device=x.device)
        c = torch.zeros_like(h)
        outputs = []
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
            outputs.append(self.head(h))
        return torch.stack(outputs, dim=1)


class Chomp1d(nn.Module):
    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation
        conv1 = weight_norm(nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation))
        conv2 = weight_norm(nn.Conv1d(outputs, outputs, kernel, padding=padding, dilation=dilation))
        self.net = nn.Sequential(
            conv1, Chomp1d(padding), nn.ReLU(), nn.Dropout(0.2), conv2, Chomp1d(padding), nn.ReLU(), nn.Dropout(0.2)
        )
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(out + res)


class TCN(nn.Module):
    """Dilated causal convolutions (Bai et al. 2018)."""

    def __init__(self, width: int = 6, channels: tuple[int, ...] = (16, 16, 12), classes: int = 4) -> None:
        super().__init__()
        sizes = (width, *channels)
        self.network = nn.Sequential(*(TemporalBlock(sizes[i], sizes[i + 1], 2, 2**i) for i in range(len(channels))))
        self.linear = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x.transpose(1, 2))
        return self.linear(y[:, :, -1])


class Mamba(nn.Module):
    """A selective scan, step by step (Gu and Dao 2023)."""

    def __init__(self, width: int = 12, state: int = 4, expand: int = 2, kernel: int = 3) -> None:
        super().__init__()
        inner, self.rank, self.state = expand * width, math.ceil(width / 4), state
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, state + 1).repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, z = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        u = self.conv1d(u.transpose(1, 2))[:, :, :length].transpose(1, 2)
        y = self.scan(F.silu(u))
        return x + self.out_proj(y * F.silu(z))

    def scan(self, u: Tensor) -> Tensor:
        """Runs h' = exp(dt A) h + dt B u, y = C h + D u; ``u`` is ``[batch, length, inner]``."""
        delta, B, C = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        A = -torch.exp(self.A_log)
        deltaA = torch.exp(delta.unsqueeze(-1) * A)
        deltaB_u = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        h = torch.zeros_like(deltaA[:, 0])
        ys = []
        for i in range(u.shape[1]):
            h = deltaA[:, i] * h + deltaB_u[:, i]
            ys.append(torch.einsum("bdn,bn->bd", h, C[:, i]))
        return torch.stack(ys, dim=1) + u * self.D


class StateSpaceModel(nn.Module):
    def __init__(self, vocabulary: int = 32, width: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList([Mamba(width), Mamba(width)])
        self.norm_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm_f(x))


class GraphConv(nn.Module):
    """A graph convolution with a dense adjacency matrix (Kipf and Welling 2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin_rel = nn.Linear(inputs, outputs)
        self.lin_root = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        degree = adj.sum(dim=-1, keepdim=True).clamp(min=1)
        return self.lin_rel(torch.matmul(adj, x) / degree) + self.lin_root(x)


class GNN(nn.Module):
    def __init__(self, width: int = 6, hidden: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = GraphConv(width, hidden)
        self.conv2 = GraphConv(hidden, hidden)
        self.bn = nn.BatchNorm1d(hidden)
        self.readout = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = F.relu(self.conv1(x, adj))
        b, n, c = x.size()
        x = self.bn(x.view(b * n, c)).view(b, n, c)
        x = F.relu(self.conv2(x, adj))
        return self.readout(torch.cat([x.mean(dim=1), x.max(dim=1).values], dim=-1))


def graph(nodes: int = 8, width: int = 6) -> dict[str, Tensor]:
    adj = (torch.rand(2, nodes, nodes) < 0.4).float()
    return {"x": sequence(nodes, width), "adj": ((adj + adj.transpose(1, 2)) > 0).float()}


MODELS: dict[str, Callable[[], Call]] = {
    "lstm-tagger": lambda: Call(LSTMTagger(), (token_ids(),)),
    "gru-tagger": lambda: Call(GRUTagger(), (token_ids(),)),
    "lstm-projected": lambda: Call(ProjectedLSTM(), (sequence(8, 8),)),
    "lstm-cell": lambda: Call(LSTMCellDecoder(), (sequence(6, 8),)),
    "tcn": lambda: Call(TCN(), (sequence(12, 6),)),
    "selective-scan": lambda: Call(StateSpaceModel(), (token_ids(),)),
    "gnn": lambda: Call(GNN(), kwargs=graph()),
}
