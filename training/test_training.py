"""python -m pytest training/test_training.py  (CPU, under a minute; diffusers is needed for one test only)"""
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import cost
import data
import export
import narrow
import taesd
from infgen_model import InfGenDecoder, grid_points, preset, validate
from narrow import narrowed
from train import CONFIGS, Teachers, base_crops, crop_tokens, encoded, initialise, share_statistics

SMALL = dict(hidden_size=64, num_blocks=2, num_heads=2, mlp_hidden=96, inpe_features=16, inpe_hidden=32, norm_num_groups=8)


def small(kind="table1", **kw):
    torch.manual_seed(0)
    up = dict(table1=[64, 32, 32], sd4=[64, 64, 32, 32])[kind]
    return InfGenDecoder(preset(kind, **{**SMALL, "up_block_channels": up, **kw})).eval().requires_grad_(False)


def close(a, b, tol=1e-4):
    assert a.shape == b.shape
    assert ((a - b).norm() / b.norm()).item() < tol


def test_parameter_counts_of_the_presets():
    for name, millions in (("table1", 61.23), ("sd4", 75.24)):
        with torch.device("meta"):
            n = sum(v.numel() for v in InfGenDecoder(preset(name)).state_dict().values())
        assert abs(n / 1e6 - millions) < 0.005


def test_config_is_checked():
    for bad in (dict(colour=1), dict(up_block_upsample=[True, True, False]), dict(num_heads=7), dict(scaling_factor=0.5), dict(norm="post")):
        with pytest.raises(ValueError):
            validate({**preset("table1"), **bad})


BASE = dict(base_channels=[16, 12, 8, 8], base_blocks=[2, 1, 0, 1], stem_channels=12)


def test_a_base_picture_is_added_and_crops_of_it_are_those_of_the_whole():
    m, z = small(latent_skip="bilinear", mid_block_add_attention=False, **BASE), torch.randn(1, 4, 8, 8)
    H, W = 88, 104
    whole, base = m(z, H, W), m.base(z)
    assert base.shape == (1, 3, 64, 64)
    up = torch.from_numpy(np.stack([np.asarray(Image.fromarray(c).resize((W, H), Image.BICUBIC)) for c in base[0].numpy()]))
    plain = small(latent_skip="bilinear", mid_block_add_attention=False, stem_channels=12)
    plain.load_state_dict({k: v for k, v in m.state_dict().items() if not k.startswith("base.")})
    close(whole - plain(z, H, W), up[None], 1e-5)
    close(base_crops(m, z, [(H, W)], [[(2, 3, 4, 5)]]), up[None, :, 16:48, 24:64], 1e-5)


def test_a_narrower_network_is_the_same_where_it_can_be_and_near_elsewhere():
    wide = small(latent_skip="bilinear", mid_block_add_attention=False, up_block_channels=[64, 48, 32])
    latents = [torch.randn(4, 16, 16) * 4 for _ in range(6)]
    want = lambda net: torch.stack([net(z[None], 128, 128) for z in latents[:2]])
    same = narrowed(wide, latents, [64, 48, 32], 40)
    assert same.post_quant_conv.out_channels == 40
    x, _ = wide.encode_latent(latents[0][None])
    close(same.encode_latent(latents[0][None])[0], x, 1e-5)
    close(want(same.eval()), want(wide), 0.02)  # all channels, each convolution fitted again
    less = narrowed(wide, latents, [64, 40, 24], 40)
    error = ((want(less.eval()) - want(wide)).norm() / want(wide).std(correction=0) / want(wide).numel() ** 0.5).item()
    assert error < 0.9, error  # of a random network, whose channels are all of use


def test_larger_pictures_are_taught_as_the_mean_with_smaller_ones_enlarged(monkeypatch):
    m, z = small(latent_skip="bilinear", mid_block_add_attention=False), torch.randn(1, 4, 6, 8)
    at = lambda k: (z, [(8 * 6 * k, 8 * 8 * k)], [[(0, 0, 6 * k, 8 * k)]])
    made = {k: narrow.core_crops(m, *at(k)) for k in (1, 2)}
    larger = F.interpolate(made[1], scale_factor=2, mode="bicubic", align_corners=False)
    close(narrow.taught(m, *at(2)), (made[2] + larger) / 2)
    close(narrow.taught(m, *at(1)), made[1], 1e-6)

    def slope(_, z, sizes, rects):
        """A picture whose value says where in it a pixel lies."""
        (H, W), grids = sizes[0], []
        for top, left, rows, cols in rects[0]:
            y, x = ((torch.arange(8 * n) + 8 * o + 0.5) / side for n, o, side in ((rows, top, H), (cols, left, W)))
            grids.append((2 * y[:, None] + 3 * x).expand(3, -1, -1))
        return torch.stack(grids)
    monkeypatch.setattr(narrow, "core_crops", slope)
    z = torch.randn(1, 4, 16, 24)
    for k in (1.25, 1.5, 2, 3, 4):
        rows, cols = int(16 * k), int(24 * k)
        crops = z, [(8 * rows, 8 * cols)], [[(5, 7, 8, 8), (rows - 12, cols - 12, 8, 8), (3, cols - 11, 8, 8)]]
        pixel = 2 / (8 * rows) + 3 / (8 * cols)
        assert (narrow.taught(m, *crops) - slope(None, *crops)).abs().max() < 0.1 * pixel, k  # torch's cubic bends slopes a little


def test_joined_networks_give_the_mean_of_both_pictures():
    m, vae, z = small(latent_skip="bilinear", mid_block_add_attention=False), taesd.decoder().requires_grad_(False), torch.randn(1, 4, 8, 8)
    state, config = export.join(m, vae, 0.3)
    both = InfGenDecoder(config)
    both.load_state_dict(state)
    want = 0.7 * m(z, 64, 64) + 0.3 * (2 * vae(z * config["scaling_factor"]) - 1)
    close(both(z, 64, 64), want, 1e-5)


def test_self_test_1_equals_the_plain_vae_decode():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 32, 64, 64), layers_per_block=2, norm_num_groups=8, latent_channels=4,
                                  down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4).eval()
    m = small("sd4", latent_skip="bilinear")
    sd = m.state_dict()
    for k, v in vae.state_dict().items():
        if k in sd:
            sd[k] = v
    for k in sd:
        if "attn.to_out.0" in k or "ff.net.2" in k or k == "mask_token" or "inpe.fc2" in k:
            sd[k] = torch.zeros_like(sd[k])
    m.load_state_dict(sd)
    z = torch.randn(1, 4, 9, 12)
    with torch.no_grad():
        close(m(z, 72, 96), vae.decode(z).sample)


def test_self_test_2_queries_in_tiles():
    m, z = small(latent_skip="bilinear"), torch.randn(1, 4, 8, 8)
    x, L = m.encode_latent(z)
    y_, x_ = grid_points(11, 13)
    whole = m.run_blocks(m.mask_tokens(x, y_, x_), L)
    for tile in (1, 7, 50):
        parts = [m.run_blocks(m.mask_tokens(x, y_[i:i + tile], x_[i:i + tile]), L) for i in range(0, 143, tile)]
        close(torch.cat(parts, 1), whole, 1e-5)


def test_self_test_3_equal_grids_have_equal_codes():
    m = small()
    close(m.inpe(*grid_points(6, 5)), m.inpe(*grid_points(6, 5)), 1e-12)
    whole, part = grid_points(12, 10), grid_points(12, 10, (3, 2, 4, 5))
    close(m.inpe(*whole).view(12, 10, -1)[3:7, 2:7].reshape(20, -1), m.inpe(*part), 1e-6)


def test_self_test_4_token_order_does_not_matter():
    m, z = small(), torch.randn(1, 4, 8, 8)
    x, L = m.encode_latent(z)
    M = m.mask_tokens(x, *grid_points(9, 9))
    close(m.run_blocks(M, L[:, torch.randperm(64)]), m.run_blocks(M, L), 1e-5)


def test_sizes_that_are_no_multiple_of_the_patch():
    m, z = small(), torch.randn(2, 4, 8, 8)
    assert m(z, 61, 37).shape == (2, 3, 61, 37)
    close(m(z, 61, 37), m(z, 64, 40)[..., :61, :37], 1e-6)


def test_separate_codes_and_attention_switch():
    m = small(inpe_shared=False, mid_block_add_attention=True)
    assert "inpe.latent.B" in m.state_dict() and "inpe.mask.fc2.bias" in m.state_dict()
    z = torch.randn(1, 4, 8, 8)
    on = m(z, 64, 64)
    m.use_attention = False
    assert (m(z, 64, 64) - on).abs().max() > 0


def test_training_crops_are_the_model():
    """A training crop of the whole picture is the picture; crops of one picture share their statistics."""
    m, z = small(latent_skip="bilinear", mid_block_add_attention=False), torch.randn(4, 8, 8)
    whole = m(z[None], 96, 80)
    t = crop_tokens(m, z[None], [(96, 80)], [[(0, 0, 12, 10)]])
    close(m.decoder(t), whole, 1e-5)
    # two pictures of two sizes, two crops of each: as one by one
    other, rects = torch.randn(4, 8, 8), [[(0, 0, 4, 5), (8, 5, 4, 5)], [(1, 2, 4, 5), (3, 3, 4, 5)]]
    both = crop_tokens(m, torch.stack([z, other]), [(96, 80), (64, 72)], rects)
    alone = [crop_tokens(m, v[None], [size], [[r]]) for v, size, rs in zip((z, other), [(96, 80), (64, 72)], rects) for r in rs]
    close(both, torch.cat(alone), 1e-5)
    close(alone[1], t[..., 8:12, 5:10], 1e-5)
    close(m(z[None], 96, 80, rect=(0, 0, 12, 10)), whole, 1e-6)
    share_statistics(m, 2)
    pair = m.decoder(torch.cat([t, t]).contiguous(memory_format=torch.channels_last))
    close(pair, torch.cat([whole, whole]), 1e-4)


def test_teachers_show_what_their_networks_make_of_the_latent():
    m, z = small(latent_skip="bilinear", mid_block_add_attention=False), torch.randn(4, 8, 8)
    vae = taesd.decoder(width=8).eval().requires_grad_(False)
    whole = (z, (64, 64), [(0, 0, 8, 8)], torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), 1)
    teach = lambda shares, *batch: Teachers(vae, m, shares, False)(list(batch))
    of_vae = vae(z[None] * m.config["scaling_factor"]).clamp(0, 1) * 2 - 1
    of_model = m(z[None], 64, 64).clamp(-1, 1)
    picture = whole[3] / 127.5 - 1
    assert torch.equal(teach((0, 0), whole), picture)
    close(teach((0, 1), whole, whole), torch.cat([of_model] * 2), 1e-5)
    close(teach((1, 0), whole), of_vae, 1e-5)
    close(teach((0.5, 0.2), whole), 0.5 * of_vae + 0.2 * of_model + 0.3 * picture, 1e-5)
    # the lower left quarter at twice the size, box-reduced: the same pixels as that part of the picture, each four times
    quarter = (z, (128, 128), [(8, 0, 8, 8)], torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 2)
    there = of_vae[..., 32:, :32].repeat_interleave(2, 2).repeat_interleave(2, 3)
    close(teach((1, 0), quarter), there, 1e-5)
    # beyond the latent's own size the network shows its picture of that size, beside one that it shows as it is
    close(teach((0, 1), quarter), of_model[..., 32:, :32].repeat_interleave(2, 2).repeat_interleave(2, 3), 1e-5)
    twice = (z, (128, 128), [(0, 0, 8, 8)], torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 1)
    large = F.interpolate(of_model, (128, 128), mode="bicubic", align_corners=False).clamp(-1, 1)[..., :64, :64]
    close(teach((0, 1), twice, whole), torch.cat([large, of_model]), 1e-4)
    # --repair: what the network made, with the picture's colours but none of its detail
    for name, v in m.named_parameters():
        v.data *= 0.2 if "conv_out" in name else 1
    of_model = m(z[None], 64, 64)
    shown = lambda v: (*whole[:3], ((of_model + v).clamp(-1, 1) * 127.5 + 127.5).round().byte(), 1)
    repaired = lambda picture: Teachers(vae, m, (0, 0), False, True)([picture]) - of_model
    checks = 0.2 * (1 - 2 * ((torch.arange(64)[:, None] + torch.arange(64)) % 2))
    assert of_model.abs().max() < 0.7
    assert (repaired(shown(0.25)) - 0.25).abs().max() < 0.01 and repaired(shown(checks)).abs().max() < 0.01


def test_views_are_encoded_shape_by_shape():
    e = taesd.encoder(widths=[8] * 4).eval()
    views = [torch.randint(0, 256, (3, 64, w), dtype=torch.uint8) for w in (64, 48, 64)]
    got = encoded([(v, i) for i, v in enumerate(views)], e, 0.5, False)
    for i, v in enumerate(views):
        assert got[i][1] == i
        close(got[i][0], e(v[None] / 255).detach()[0] / 0.5, 1e-5)


def test_configs_keep_their_limits():
    for name, mib, mflop in (("tiny-sd", 6, 0.6), ("tiny-sdxl", 6, 0.6), ("large-sd", 40, 9)):
        assert cost.parameters(CONFIGS[name]) * 2 / 2 ** 20 <= mib, name
        assert cost.flop(CONFIGS[name], 1024, 1024)["total"] / 1024 ** 2 / 1e6 <= mflop, name


def test_shipped_decoders_keep_their_limits():
    for name, mib in (("tiny-sd", 6), ("tiny-sdxl", 8), ("base-sd", 40)):  # the first is embedded
        file = HERE.parent / f"weights/infgen-{name}.safetensors"
        assert file.stat().st_size <= mib * 2 ** 20, name
        assert cost.flop(export.read_decoder(file).config, 1024, 1024)["total"] / 1024 ** 2 / 1e6 <= 0.6, name


def test_cost_of_the_presets_is_that_of_the_specification():
    assert abs(cost.flop(preset("table1"), 1024, 1024, phases=False)["total"] / 1e12 - 5.271) < 0.01
    assert abs(cost.flop(preset("sd4"), 2048, 2048, phases=False)["total"] / 1e12 - 55.73) < 0.1


def test_export_round_trip(tmp_path):
    m = InfGenDecoder(CONFIGS["smoke"])
    initialise(m, lookup=True)
    export.write_decoder(m.state_dict(), m.config, tmp_path / "d.safetensors")
    r = export.read_decoder(tmp_path / "d.safetensors")
    assert r.config == m.config and torch.equal(r.inpe.B, m.inpe.B)
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        close(r(z, 64, 64), m(z, 64, 64), 1e-2)
    widths = [8, 8, 16, 16]
    e = taesd.encoder(widths=widths)
    export.write_encoder(e.state_dict(), "sd", widths, tmp_path / "e.safetensors")
    assert export.read_encoder(tmp_path / "e.safetensors")(torch.rand(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    export.main("mix", *[str(tmp_path / "d.safetensors")] * 2, "0.6", str(tmp_path / "mixed.safetensors"))
    close(export.read_decoder(tmp_path / "mixed.safetensors")(z, 64, 64), r(z, 64, 64), 1e-3)
    m.mask_token.data[0] = 1e6
    with pytest.raises(ValueError):
        export.write_decoder(m.state_dict(), m.config, tmp_path / "d.safetensors")


def test_export_of_several_runs_is_their_mean(tmp_path):
    widths = [8, 8, 16, 16]
    e = taesd.encoder(widths=widths).state_dict()
    for name, factor in ("a", 1.0), ("b", 3.0):
        torch.save(dict(ema={k: factor * v for k, v in e.items()}, space="sd", widths=widths, step=1, seconds=1.0), tmp_path / name)
    export.main("encoder", str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "mean.safetensors"))
    mean = export.read_encoder(tmp_path / "mean.safetensors").state_dict()
    assert all(torch.allclose(mean[k], 2 * v, rtol=1e-3, atol=1e-4) for k, v in e.items())


def test_smoke_run_and_resume(tmp_path):
    run = lambda out, *more: subprocess.run([sys.executable, str(HERE / "train.py"), "--smoke", "--out", str(out), *more],
                                            check=True, capture_output=True, text=True).stdout
    assert "step 6 " in run(tmp_path)
    assert "resumed at step 6" in run(tmp_path)
    assert "step 6 " in run(tmp_path / "fresh", "--fresh-views")
    state, config = export.join(InfGenDecoder(CONFIGS["smoke"]), taesd.decoder(), 0.5)
    export.write_decoder(state, config, tmp_path / "joined.safetensors")
    assert "step 6 " in run(tmp_path / "joined", "--init", str(tmp_path / "joined.safetensors"), "--freeze-base")
    before, after = export.read_decoder(tmp_path / "joined.safetensors").state_dict(), torch.load(tmp_path / "joined" / "checkpoint.pt", weights_only=True)["ema"]
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert "decoder.conv_out.weight" in moved and not any(k.startswith("base.") for k in moved)
    c = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in c["ema"].values())


def test_samples_show_what_their_latents_were_made_of(tmp_path):
    """Crops of a view have its colours and lie where their rects say; the picture comes whole where it is not larger than its crops."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(60, 190, (16, 16, 3), np.uint8), np.ones((40, 40, 1), np.uint8))
    seen = []

    class Encoder(torch.nn.Module):
        def forward(self, x):
            seen.append((x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            return torch.full((1, 4, x.shape[2] // 8, x.shape[3] // 8), float(len(seen)))

    data.make_views([("p", picture)], Encoder(), tmp_path, 12, seed=3, amp=False, plain=1)
    sampler = data.Sampler([("p", picture)], tmp_path, 1.0)
    assert len(sampler.views) == 12 and (sampler.views["p.00.npz"]["colours"] == np.eye(3, 4)).all()
    assert sum((v["colours"] != np.eye(3, 4)).any() for v in sampler.views.values()) >= 4
    fresh = data.Sampler([("p", picture)], None, 1.0)
    rng, whole = random.Random(0), 0
    for n in range(120):
        z, size, rects, crops, reduce = (fresh if n % 2 else sampler).draw(rng, 4, 32, 640)
        view = z.permute(1, 2, 0).numpy() if n % 2 else seen[int(z[0, 0, 0]) - 1]
        if size != (view.shape[0], view.shape[1]) or reduce != 1:
            continue
        assert len(rects) == len(crops) <= 4
        whole += len(crops) == 1
        for (i, j, rows, cols), crop in zip(rects, crops):
            there = view[8 * i:8 * (i + rows), 8 * j:8 * (j + cols)].astype(int)
            assert abs(crop.permute(1, 2, 0).numpy() - there).mean() < 3  # filters differ a little at a crop's rim
    assert whole > 10
