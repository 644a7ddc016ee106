"""PVC's encoding written out plainly in float64: what the tests hold the model against.

Section 3.2 of the paper, one clip, one moment, one tile at a time. It shares no code with the model: of the
model it takes the weights (by name) and the configuration's numbers.

Shapes: `N` tokens of a row (class token, then patches), `C` width of the ViT, `D` of the projector's input.
"""

import math

import torch
import torch.nn.functional as F


class PlainPVC:
    """Encodes with the weights of a `PVCModel`."""

    def __init__(self, model: torch.nn.Module):
        self.config, self.vit = model.config, model.config.vision_config
        self.weights = {name: value.double() for name, value in model.state_dict().items()}

    def encode(self, clip: torch.Tensor, repeats: int, side: int | None = None) -> torch.Tensor:
        """`clip (frames, tiles, 3, H, W)`, each frame `repeats` times -> visual tokens `(tokens, H)`.

        `side`: of the square of tokens of a tile, to which patches are pooled; None: they are not.
        """
        rows, moments = self.hidden_states(clip, repeats)
        grid = (clip.shape[3] // self.vit.patch_size, clip.shape[4] // self.vit.patch_size)
        keys = [(moment, tile) for moment in range(moments) for tile in range(clip.shape[1])]
        if len(clip) == 1 and self.config.tile_repeat_order != "frame":
            keys = sorted(keys, key=lambda key: key[1])
        if side is not None:
            small = side * round(1 / self.config.downsample_ratio)
            rows = {key: self.pool(x, grid, small) for key, x in rows.items()}
            grid = (small, small)
        tokens = {key: self.project(rows[key], time_of(key[0], moments), grid) for key in keys}
        if len(clip) == 1 and self.config.tile_repeat_order == "raster":
            block = round(1 / self.config.downsample_ratio)
            if repeats == (block // 2) ** 2:
                blocks = (grid[0] // block, grid[1] // block)
                return torch.cat(
                    [self.raster(tokens, tile, block // 2, blocks) for tile in range(clip.shape[1])]
                )
        return torch.cat(list(tokens.values()))

    def raster(self, tokens: dict, tile: int, side: int, blocks: tuple[int, int]) -> torch.Tensor:
        """One grid of a tile's repeats: repeat `r` has part (r // side, r % side) of each block."""
        found = {}
        for top in range(blocks[0] * side):
            for left in range(blocks[1] * side):
                row, column = top // side, left // side
                place = row * blocks[1] + column
                if self.config.ps_version == "v1":
                    place = column * blocks[0] + row
                found[top, left] = tokens[top % side * side + left % side, tile][place]
        corners = sorted(found)
        if self.config.ps_version == "v1":
            corners = sorted(corners, key=lambda corner: corner[1])
        return torch.stack([found[corner] for corner in corners])

    def pool(self, x: torch.Tensor, grid: tuple[int, int], small: int) -> torch.Tensor:
        """`(N, C)` -> class token and the means of `small` x `small` windows, which may overlap."""
        windows = [
            [range(i * side // small, -(-(i + 1) * side // small)) for i in range(small)] for side in grid
        ]
        means = [
            torch.stack([x[1 + row * grid[1] + column] for row in rows for column in columns]).mean(0)
            for rows in windows[0]
            for columns in windows[1]
        ]
        return torch.stack([x[0], *means])

    def hidden_states(self, clip: torch.Tensor, repeats: int) -> tuple[dict, int]:
        """The selected hidden state `(N, C)` of each (moment, tile), and the number of moments."""
        vit, depth = self.vit, self.vit.num_hidden_layers
        shown = [frame for frame in clip for _ in range(repeats)]
        x = {(m, p): self.embed(tile) for m, frame in enumerate(shown) for p, tile in enumerate(frame)}
        last = self.config.select_layer
        for n in range(last if last >= 0 else depth + 1 + last):
            layer = f"vision_model.encoder.layers.{n}"
            x = {key: row + self.spatial_attention(layer, row) for key, row in x.items()}
            if n >= depth - vit.num_temporal_layers:
                x = self.look_back(layer, x, len(shown), clip.shape[1])
            x = {key: row + self.feed_forward(layer, row) for key, row in x.items()}
        return x, len(shown)

    def embed(self, tile: torch.Tensor) -> torch.Tensor:  # (3, H, W) -> (N, C)
        name, size = "vision_model.embeddings", self.vit.patch_size
        patches = [
            tile[:, top : top + size, left : left + size].flatten()
            for top in range(0, tile.shape[1], size)
            for left in range(0, tile.shape[2], size)
        ]
        kernel = self.weights[f"{name}.patch_embedding.weight"].flatten(1)
        patches = torch.stack(patches).double() @ kernel.T + self.weights[f"{name}.patch_embedding.bias"]
        positions = self.positions(tile.shape[1] // size, tile.shape[2] // size)
        return torch.cat([self.weights[f"{name}.class_embedding"][0], patches]) + positions

    def positions(self, rows: int, columns: int) -> torch.Tensor:  # (N, C)
        positions = self.weights["vision_model.embeddings.position_embedding"][0]
        side = self.vit.image_size // self.vit.patch_size
        grid = positions[1:].T.reshape(1, -1, side, side)
        if (rows, columns) != (side, side):
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([positions[:1], grid.flatten(2)[0].T])

    def spatial_attention(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.linear(f"{layer}.attn.qkv", self.norm(f"{layer}.norm1", x)).split(x.shape[1], dim=1)
        if self.vit.qk_normalization:
            q, k = self.norm(f"{layer}.attn.q_norm", q), self.norm(f"{layer}.attn.k_norm", k)
        out = []
        width = x.shape[1] // self.vit.num_attention_heads
        for head in range(self.vit.num_attention_heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / width**0.5
            out.append(scores.softmax(dim=1) @ v[:, part])
        return self.weights[f"{layer}.ls1"] * self.linear(f"{layer}.attn.proj", torch.cat(out, dim=1))

    def look_back(self, layer: str, x: dict, moments: int, tiles: int) -> dict:
        """`x + alpha * T-MHA(AdaLN(x; x + TE))`: each token sees its own place, now and before."""
        norm, gate = f"{layer}.temporal_norm", self.weights[f"{layer}.temporal_gate"]
        out, seen = {}, {}
        for tile in range(tiles):
            for now in range(moments):
                row = self.adaptive_norm(norm, x[now, tile], time_of(now, moments), self.vit.layer_norm_eps)
                qkv = self.linear(f"{layer}.temporal_attn.qkv", row).unflatten(
                    1, (3, self.vit.num_attention_heads, -1)
                )
                seen[now] = qkv[:, 1:]
                past = torch.stack([seen[moment] for moment in range(now + 1)])  # (moments, N, 2, heads, d)
                scores = (qkv[:, 0] * past[:, :, 0]).sum(-1) / qkv.shape[-1] ** 0.5  # (moments, N, heads)
                heads = (scores.softmax(dim=0)[..., None] * past[:, :, 1]).sum(0)  # (N, heads, d)
                attended = self.linear(f"{layer}.temporal_attn.proj", heads.flatten(1))
                out[now, tile] = x[now, tile] + gate * attended
        return out

    def feed_forward(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        hidden = gelu(self.linear(f"{layer}.mlp.fc1", self.norm(f"{layer}.norm2", x)))
        return self.weights[f"{layer}.ls2"] * self.linear(f"{layer}.mlp.fc2", hidden)

    def project(self, x: torch.Tensor, time: float, grid: tuple[int, int]) -> torch.Tensor:
        """`(N, C)` -> visual tokens of one row: blocks of patches stacked, AdaLN, MLP."""
        block = round(1 / self.config.downsample_ratio)
        corners = [(top, left) for top in range(0, grid[0], block) for left in range(0, grid[1], block)]
        if self.config.ps_version == "v1":
            corners = sorted(corners, key=lambda corner: corner[1])
        places = [
            [1 + (top + i) * grid[1] + left + j for i in range(block) for j in range(block)]
            for top, left in corners
        ]
        stacked = torch.stack([torch.cat([x[place] for place in token]) for token in places])
        if self.config.adaptive_compression:
            stacked = self.adaptive_norm("projector.norm", stacked, time, eps=1e-5)
        else:
            stacked = self.norm("projector.norm", stacked, eps=1e-5)
        return self.mlp("projector.mlp", stacked, gelu)

    def adaptive_norm(self, name: str, x: torch.Tensor, time: float, eps: float) -> torch.Tensor:
        """`gamma(z) * LN(x) + beta(z)`."""
        condition = self.vit.temporal_condition
        normed = standardised(x, eps)
        if condition == "none":
            return normed
        te = self.mlp(f"{name}.time_embed", sinusoid(time, self.vit.time_embed_dim), silu)
        z = {"x+te": x + te, "te": te.expand_as(x)}[condition]
        return self.mlp(f"{name}.gamma", z, silu) * normed + self.mlp(f"{name}.beta", z, silu)

    def norm(self, name: str, x: torch.Tensor, eps: float | None = None) -> torch.Tensor:
        eps = self.vit.layer_norm_eps if eps is None else eps
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if bias is None:  # RMSNorm
            return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return weight * standardised(x, eps) + bias

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def mlp(self, name: str, x: torch.Tensor, activation) -> torch.Tensor:
        return self.linear(f"{name}.2", activation(self.linear(f"{name}.0", x)))


def time_of(moment: int, moments: int) -> float:
    return moment / (moments - 1) if moments > 1 else 0.0


def sinusoid(time: float, dim: int) -> torch.Tensor:
    angles = [time * 10_000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    return torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)


def standardised(x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x / 2 * (1 + torch.erf(x / 2**0.5))
