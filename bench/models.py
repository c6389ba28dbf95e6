"""A training step and greedy decoding of whole models beside PyTorch's: `python -m bench.models`.

The same weights, the same batches of random tokens, float32, one process, as many threads for each
as there are processors. PyTorch runs eagerly. Before anything is timed, losses and tokens are
compared with PyTorch's in float64.
"""

import sys

import numpy as np

from bench.measure import contest, write
from dlnotes.attention import AttentionSeq2Seq
from dlnotes.encoder_decoder import greedy_decode
from dlnotes.mlp import CrossEntropyLoss
from dlnotes.training import AdamW
from dlnotes.transformer import Transformer, sinusoidal_positions

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("bench.models compares with PyTorch, which is not installed: pip install torch")

REPEATS = 11
SRC, TGT = 580, 15  # tokens, as the dates have them
SIZES = {
    "d_model": 64,
    "nhead": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dim_feedforward": 128,
    "dropout": 0.0,
}
HIDDEN = {"embedding_dim": 32, "hidden_size": 96}
RNG = np.random.default_rng(0)


def batch(m, s, t):
    "Random tokens to read and to write, sources of about 10 to s, and the mask of the former."
    real = np.arange(s) < RNG.integers(min(10, s), s + 1, size=(m, 1))
    src = np.where(real, RNG.integers(4, SRC, (m, s)), 0)
    return src, RNG.integers(4, TGT, (m, t)), real, RNG.integers(4, TGT, (m, t))


class TorchTransformer(torch.nn.Module):
    "The same model of PyTorch's parts."

    def __init__(self, model):
        super().__init__()
        d, h = SIZES["d_model"], SIZES["nhead"]
        self.src_embedding = torch.nn.Embedding(SRC, d)
        self.tgt_embedding = torch.nn.Embedding(TGT, d)
        self.core = torch.nn.Transformer(
            d,
            h,
            SIZES["num_encoder_layers"],
            SIZES["num_decoder_layers"],
            SIZES["dim_feedforward"],
            SIZES["dropout"],
            batch_first=True,
            norm_first=True,
        )
        self.head = torch.nn.Linear(d, TGT)
        self.load_state_dict({k: torch.tensor(a) for k, a in model.state_dict().items()})
        self.register_buffer(
            "places", torch.tensor(sinusoidal_positions(256, d, np.float64)), persistent=False
        )
        self.register_buffer(
            "later", torch.ones(256, 256, dtype=torch.bool).triu(1), persistent=False
        )

    def embed(self, embedding, ids, start=0):
        x = embedding(ids)
        return x + self.places[start : start + ids.shape[1]].to(x.dtype)

    def decode(self, tgt, memory, hidden):
        y = self.core.decoder(
            self.embed(self.tgt_embedding, tgt),
            memory,
            tgt_mask=self.later[: tgt.shape[1], : tgt.shape[1]],
            tgt_is_causal=True,
            memory_key_padding_mask=hidden,
        )
        return self.head(y)

    def encode(self, src, hidden):
        return self.core.encoder(self.embed(self.src_embedding, src), src_key_padding_mask=hidden)

    def forward(self, src, tgt, real):
        return self.decode(tgt, self.encode(src, ~real), ~real).transpose(1, 2)


class TorchAttention(torch.nn.Module):
    "The attention model of PyTorch's parts; padding is packed away."

    def __init__(self, model):
        super().__init__()
        d, h = HIDDEN["embedding_dim"], HIDDEN["hidden_size"]
        self.src_embedding = torch.nn.Embedding(SRC, d, 0)
        self.tgt_embedding = torch.nn.Embedding(TGT, d, 0)
        self.encoder = torch.nn.GRU(d, h // 2, batch_first=True, bidirectional=True)
        self.decoder = torch.nn.GRU(d, h, batch_first=True)
        self.attention = torch.nn.ParameterDict({"weight": torch.empty(h, h)})
        self.head = torch.nn.Linear(2 * h, TGT)
        self.load_state_dict({k: torch.tensor(a) for k, a in model.state_dict().items()})

    def forward(self, src, tgt, real):
        x = torch.nn.utils.rnn.pack_padded_sequence(
            self.src_embedding(src), real.sum(1), batch_first=True, enforce_sorted=False
        )
        memory, last = self.encoder(x)
        memory, _ = torch.nn.utils.rnn.pad_packed_sequence(
            memory, batch_first=True, total_length=src.shape[1]
        )
        s, _ = self.decoder(self.tgt_embedding(tgt), torch.cat(list(last), 1)[None])
        scores = s @ self.attention["weight"] @ memory.transpose(1, 2)
        weights = scores.masked_fill(~real[:, None], -torch.inf).softmax(-1)
        return self.head(torch.cat([s, weights @ memory], 2)).transpose(1, 2)


class Cached:
    "PyTorch's decoder, one token after the other, with keys and values kept: by hand, eagerly."

    def __init__(self, net, src, real):
        self.net, self.hidden, self.past = net, real[:, None, None], {}
        memory = net.encode(src, ~real)
        d = memory.shape[2]
        for i, layer in enumerate(net.core.decoder.layers):
            part = layer.multihead_attn
            y = F.linear(memory, part.in_proj_weight[d:], part.in_proj_bias[d:])
            self.past[i, "read"] = [self.heads(a) for a in y.split(d, -1)]

    def heads(self, x):
        return x.unflatten(-1, (SIZES["nhead"], -1)).transpose(1, 2)

    def attend(self, part, q, k, v, mask=None):
        y = F.scaled_dot_product_attention(self.heads(q), k, v, mask)
        return part.out_proj(y.transpose(1, 2).flatten(2))

    def step(self, tokens, t):
        x = self.net.embed(self.net.tgt_embedding, tokens, t)
        d = x.shape[2]
        for i, layer in enumerate(self.net.core.decoder.layers):
            part = layer.self_attn
            q, k, v = F.linear(layer.norm1(x), part.in_proj_weight, part.in_proj_bias).split(d, -1)
            new = [self.heads(k), self.heads(v)]
            if t:
                new = [torch.cat(pair, 2) for pair in zip(self.past[i, "own"], new)]
            self.past[i, "own"] = new
            x = x + self.attend(part, q, *new)
            part = layer.multihead_attn
            q = F.linear(layer.norm2(x), part.in_proj_weight[:d], part.in_proj_bias[:d])
            x = x + self.attend(part, q, *self.past[i, "read"], self.hidden)
            x = x + layer.linear2(F.relu(layer.linear1(layer.norm3(x))))
        return self.net.head(self.net.core.decoder.norm(x))


def training(case, model, net_of, m, s, t):
    "One step: forward, loss, backward, AdamW. The losses of the first two are compared."
    src, tgt_in, real, tgt_out = batch(m, s, t)
    loss = CrossEntropyLoss(ignore_index=0)
    start = {k: a.copy() for k, a in model.state_dict().items()}
    optimizer = AdamW(model.params, 1e-3)

    def ours():
        answer, cache = model.forward(src, tgt_in, real)
        value, back = loss.forward(answer, tgt_out)
        _, grads = model.backward(loss.backward(back), cache, input_grad=False)
        optimizer.step(grads)
        return value

    def in_torch(dtype=torch.float32, **options):
        net = net_of(model).to(dtype).train()
        method = torch.optim.AdamW(net.parameters(), 1e-3, **options)
        a, b, c, y = map(torch.tensor, (src, tgt_in, real, tgt_out))

        def step():
            method.zero_grad()
            value = F.cross_entropy(net(a, b, c), y, ignore_index=0)
            value.backward()
            method.step()
            return value.item()

        return step

    contenders = {"PyTorch": in_torch(), "PyTorch, fused": in_torch(fused=True)}
    exact = in_torch(torch.float64)
    wanted = [exact(), exact()]
    contenders = {"dlnotes": model.train() and ours, **contenders}
    for name, f in contenders.items():
        got = [f(), f()]
        assert np.allclose(got, wanted, rtol=1e-4), (case, name, got, wanted)
    model.load_state_dict(start)
    return report("training step", case, contenders)


def decoding(case, model, s, steps):
    "Greedy decoding of one sequence, always the same number of tokens."
    model.params["head.bias"][2] = -1e9  # so that it never ends
    src, _, _, _ = batch(1, s, 1)
    real, net = np.ones((1, s), bool), TorchTransformer(model).eval()
    a, c = torch.tensor(src), torch.tensor(real)
    model.eval()

    def ours():
        return greedy_decode(model, src, real, max_length=steps)

    def anew(net=net):
        with torch.no_grad():
            memory, tgt = net.encode(a, ~c), torch.ones(1, 1, dtype=torch.int64)
            for _ in range(steps):
                last = net.decode(tgt, memory, ~c)[:, -1:].argmax(-1)
                tgt = torch.cat([tgt, last], 1)
            return tgt[:, 1:].numpy()

    def cached(net=net):
        with torch.no_grad():
            keeper, token, out = Cached(net, a, c), torch.ones(1, 1, dtype=torch.int64), []
            for t in range(steps):
                token = keeper.step(token, t)[:, -1:].argmax(-1)
                out.append(token)
            return torch.cat(out, 1).numpy()

    wanted = anew(TorchTransformer(model).eval().double())
    contenders = {"dlnotes": ours, "PyTorch": anew, "PyTorch, cache by hand": cached}
    for name, f in contenders.items():
        assert np.array_equal(f(), wanted), (case, name)
    return report("decoding, one sequence", case, contenders)


def report(kind, case, contenders):
    row = {"kind": kind, "case": case, **contest(contenders, REPEATS, block=2e-2)}
    ratios = "  ".join(f"{k} {v:.2f}" for k, v in row["ratio"].items())
    print(f"{kind:24} {case:40} {row['ms']['dlnotes']:9.3f} ms   {ratios}", flush=True)
    return row


def transformer():
    return Transformer(SRC, TGT, **SIZES, norm_first=True, rng=0)


def main():
    rows = [
        training(f"Transformer, {m} × {s} to {t}", transformer(), TorchTransformer, m, s, t)
        for m, s, t in [(64, 20, 11), (64, 60, 33)]
    ]
    rows += [
        training(
            f"attention, {m} × {s} to {t}",
            AttentionSeq2Seq(SRC, TGT, **HIDDEN, rng=0),
            TorchAttention,
            m,
            s,
            t,
        )
        for m, s, t in [(64, 20, 11), (64, 60, 33)]
    ]
    rows += [
        decoding(f"Transformer, {s} to {t}", transformer(), s, t) for s, t in [(20, 11), (60, 33)]
    ]
    write(
        "models",
        rows,
        ["torch"],
        threads=torch.get_num_threads(),
        sizes={"Transformer": SIZES, "attention": HIDDEN},
    )


if __name__ == "__main__":
    main()
