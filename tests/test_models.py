"""The networks of the experiments."""

import itertools
import re

import pytest
import torch
from torch.func import functional_call

import torchddn as ddn
from torchddn.models import (
    POOLINGS,
    RADII,
    RELAXATIONS,
    SUMMARIES,
    PermutationNet,
    PointNet,
    ResNet18,
    SequenceClassifier,
)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def every_parameter_gets_a_gradient(model, x):
    loss = model(x).square().sum()
    return all(
        grad is not None and bool(grad.isfinite().all()) and bool((grad != 0).any())
        for grad in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    )


class TestPointNet:
    def test_published_network_has_the_size_of_the_paper(self):
        widths = (3, 64, 128, 1024, 512, 256, 40)
        linear = sum((a + 1) * b for a, b in itertools.pairwise(widths))
        assert size(PointNet.published()) == linear + 2 * sum(widths[1:-1]) == 811_048
        assert size(PointNet.published("welsch")) == size(PointNet.published())
        assert PointNet.published()(torch.randn(2, 50, 3)).shape == (2, 40)

    def test_weights_of_the_small_network_keep_their_names(self):
        names = [name for name in PointNet().state_dict() if name.endswith("weight")]
        layers = ("shared.0", "shared.1", "shared.3", "shared.4", "shared.6", "shared.7")
        assert names == [f"{layer}.weight" for layer in (*layers, "classifier.0", "classifier.1", "classifier.3")]

    @pytest.mark.parametrize("pooling", POOLINGS)
    @pytest.mark.parametrize("transform", [False, True])
    def test_order_of_the_points_does_not_matter(self, pooling, transform):
        torch.manual_seed(0)
        model = PointNet(pooling, transform=transform).double().eval()
        points = torch.randn(3, 20, 3, dtype=torch.float64)
        torch.testing.assert_close(model(points[:, torch.randperm(20)]), model(points), atol=1e-9, rtol=1e-9)

    def test_transform_is_the_identity_at_first_and_leaves_further_features_alone(self):
        torch.manual_seed(0)
        plain = PointNet(num_features=6).eval()
        model = PointNet(num_features=6, transform=True).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
        points = torch.randn(2, 20, 6)
        torch.testing.assert_close(model(points), plain(points))
        turn = torch.zeros(9)
        turn[[0, 4, 8]] = -2.0  # identity - 2 identity: a reflection through the center
        state = {**model.state_dict(), "transform.last.bias": turn}
        reflected = torch.cat([-points[..., :3], points[..., 3:]], dim=2)
        torch.testing.assert_close(functional_call(model, state, (points,)), plain(reflected))

    def test_pooling_may_be_a_penalty_or_a_function(self):
        torch.manual_seed(0)
        points = torch.randn(2, 20, 3)
        networks = [
            (PointNet("huber", 0.5), PointNet(ddn.penalties.get("huber"), 0.5)),
            (PointNet("quadratic"), PointNet(lambda features: features.mean(dim=1))),
            (PointNet("max"), PointNet(lambda features: features.amax(dim=1))),
        ]
        for named, given in networks:
            given.load_state_dict(named.state_dict())
            torch.testing.assert_close(given(points), named(points))

    def test_dropout_is_there_in_training_only(self):
        model = PointNet(dropout=0.5)
        points = torch.randn(4, 10, 3)
        assert not torch.equal(model(points), model(points))
        model.eval()
        assert torch.equal(model(points), model(points))

    @pytest.mark.parametrize("transform", [False, True])
    def test_every_parameter_learns(self, transform):
        torch.manual_seed(0)
        model = PointNet("welsch", transform=transform).double()
        if model.transform is not None:
            torch.nn.init.normal_(model.transform.last.weight, std=0.01)  # zero at first: nothing before it learns
        assert every_parameter_gets_a_gradient(model, torch.randn(4, 20, 3).double())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pooling": "median"}, "`PointNet(pooling=...)` must be one of max, quadratic"),
            ({"pooling": 3}, "`PointNet(pooling=...)` must be one of max, quadratic"),
            ({"alpha": -1.0}, "`PointNet(alpha=...)` must be positive and finite, got -1.0"),
            ({"widths": ()}, "`PointNet(widths=...)` must be one or more positive integers"),
            ({"head": (0,)}, "`PointNet(head=...)` must be one or more positive integers"),
            ({"dropout": 1.0}, "`PointNet(dropout=...)` must be in [0, 1), got 1.0"),
            ({"num_features": 2, "transform": True}, "`PointNet(transform=True)` needs points in three dimensions"),
            ({"transform": 1}, "`PointNet(transform=...)` must be True or False"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            PointNet(**arguments)


class TestResNet18:
    def test_names_and_shapes_are_those_of_torchvision(self):
        state = ResNet18().state_dict()
        assert size(ResNet18()) == 11_689_512
        assert len(state) == 122
        shapes = {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.running_mean": (64,),
            "layer1.0.conv1.weight": (64, 64, 3, 3),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "layer2.0.downsample.1.num_batches_tracked": (),
            "layer4.1.bn2.bias": (512,),
            "fc.weight": (1000, 512),
        }
        assert {name: tuple(state[name].shape) for name in shapes} == shapes

    def test_answers_are_those_of_torchvision(self):
        models = pytest.importorskip("torchvision.models")
        theirs, ours = models.resnet18().eval(), ResNet18().eval()
        ours.load_state_dict(theirs.state_dict())
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours(images), theirs(images))

    @pytest.mark.parametrize("kind", ["sphere", "ball"])
    @pytest.mark.parametrize("p", [1, 2, float("inf")])
    def test_classifier_reads_the_projection_of_the_normalized_features(self, kind, p):
        torch.manual_seed(0)
        model = ResNet18(5, projection=kind, p=p, radius=1.5, in_channels=1, width=4, small_images=True).train()
        images = torch.randn(6, 1, 8, 8)
        seen = []
        model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(images)
        features = model.features(images)
        normalized = (features - features.mean(dim=0)) / (features.var(dim=0, unbiased=False) + 1e-5).sqrt()
        project = ddn.functional.project_sphere if kind == "sphere" else ddn.functional.project_ball
        torch.testing.assert_close(seen[0], project(normalized, p=p, radius=1.5), atol=1e-4, rtol=1e-4)
        norms = seen[0].norm(p=p, dim=1)
        assert (norms <= 1.5 + 1e-4).all()
        if kind == "sphere":
            torch.testing.assert_close(norms, torch.full((6,), 1.5), atol=1e-4, rtol=1e-4)

    def test_projection_adds_no_parameters_and_has_the_radius_of_the_paper(self):
        assert {1: 250.0, 2: 15.0, float("inf"): 3.0} == RADII
        plain = ResNet18(7, width=4)
        for p, radius in RADII.items():
            model = ResNet18(7, projection="ball", p=p, width=4)
            assert size(model) == size(plain)
            assert model.projection.scale() == radius
            missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
            assert not unexpected
            assert {name.partition(".")[0] for name in missing} == {"norm"}

    def test_rule_of_the_radii_holds_for_normal_features(self):
        # Two thirds of the median norm of 512 independent normal features are about 250, 15; the largest of them, 2.
        z = torch.randn(2000, 512, generator=torch.Generator().manual_seed(0))
        rule = {p: 2 / 3 * z.norm(p=p, dim=1).median().item() for p in RADII}
        assert rule[1] == pytest.approx(272, abs=3)
        assert rule[2] == pytest.approx(15, abs=0.1)
        assert 2 < rule[float("inf")] < 3

    @pytest.mark.parametrize("projection", [None, "sphere"])
    def test_every_parameter_learns(self, projection):
        torch.manual_seed(0)
        model = ResNet18(5, projection=projection, radius=2.0, in_channels=1, width=4, small_images=True).double()
        assert every_parameter_gets_a_gradient(model, torch.randn(6, 1, 8, 8).double())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"projection": "cube"}, "`ResNet18(projection=...)` must be one of 'sphere', 'ball', got 'cube'"),
            ({"projection": "ball", "p": 3}, "`ResNet18(radius=...)` must be given for p = 3"),
            ({"p": 0.5}, "ResNet18"),
            ({"num_classes": 0}, "`ResNet18(num_classes=...)` must be a positive integer"),
            ({"small_images": 1}, "`ResNet18(small_images=...)` must be True or False"),
            ({"projection": "ball", "radius": -1.0}, "must be positive and finite, got -1.0"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            ResNet18(**arguments)

    def test_wrong_input_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("must have shape (B, 3, H, W), got (2, 1, 8, 8)")):
            ResNet18(width=4)(torch.zeros(2, 1, 8, 8))


class TestSequenceClassifier:
    @pytest.mark.parametrize("pooling", SUMMARIES)
    def test_only_rank_pooling_sees_the_order_of_the_frames(self, pooling):
        torch.manual_seed(0)
        model = SequenceClassifier(pooling).double().eval()
        videos = torch.randn(3, 6, 1, 12, 12, dtype=torch.float64)
        change = (model(videos.flip(1)) - model(videos)).abs().amax(dim=1)
        assert (change > 1e-3).all() if pooling == "rank" else (change < 1e-12).all()

    def test_pooled_vector_ranks_the_frames(self):
        model = SequenceClassifier("rank", C=100.0)
        t = torch.arange(8.0).view(1, 8, 1)
        features = torch.cat([t, torch.randn(1, 8, 4)], dim=2)
        order = (features @ model.pool(features).unsqueeze(2)).squeeze(2)
        assert (order.diff(dim=1) > 0).all()

    def test_poolings_have_the_same_weights(self):
        loaded = SequenceClassifier("rank").load_state_dict(SequenceClassifier("mean").state_dict())
        assert not loaded.missing_keys and not loaded.unexpected_keys

    def test_every_parameter_learns(self):
        torch.manual_seed(0)
        model = SequenceClassifier().double()
        # What batch normalization follows is free up to a constant: a bias before it has no gradient.
        loss = model(torch.randn(4, 6, 1, 12, 12).double()).square().sum()
        names = [name for name, _ in model.named_parameters() if name != "encoder.9.bias"]
        grads = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        assert all(grad.isfinite().all() and (grad != 0).any() for grad in grads)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pooling": "median"}, "`SequenceClassifier(pooling=...)` must be one of 'rank', 'max', 'mean'"),
            ({"C": 0}, "`SequenceClassifier(C=...)` must be positive and finite"),
            ({"widths": (0,)}, "`SequenceClassifier(widths=...)` must be one or more positive integers"),
            ({"num_features": 1.5}, "`SequenceClassifier(num_features=...)` must be a positive integer"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            SequenceClassifier(**arguments)

    def test_wrong_input_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("shape (B, T, 1, H, W), got (2, 6, 12, 12)")):
            SequenceClassifier()(torch.zeros(2, 6, 12, 12))


class TestPermutationNet:
    @pytest.mark.parametrize("relaxation", RELAXATIONS)
    def test_to_shuffle_the_patches_shuffles_the_rows(self, relaxation):
        torch.manual_seed(0)
        model = PermutationNet(6, relaxation=relaxation).double().eval()
        patches = torch.randn(3, 6, 1, 4, 4, dtype=torch.float64)
        order = torch.randperm(6)
        torch.testing.assert_close(model(patches[:, order]), model(patches)[:, order], atol=1e-9, rtol=0)

    @pytest.mark.parametrize("relaxation", RELAXATIONS)
    def test_rows_sum_to_one_and_columns_too_unless_rows_are_alone(self, relaxation):
        torch.manual_seed(0)
        Y = PermutationNet(5, relaxation=relaxation).double()(torch.randn(3, 5, 1, 4, 4, dtype=torch.float64))
        assert (Y >= 0).all()
        torch.testing.assert_close(Y.sum(dim=2), torch.ones(3, 5, dtype=torch.float64))
        even = (Y.sum(dim=1) - 1).abs().amax(dim=1) < 1e-9
        assert (not even.any()) if relaxation == "softmax" else even.all()

    @pytest.mark.parametrize("relaxation", RELAXATIONS)
    def test_a_sharp_relaxation_is_the_best_assignment(self, relaxation):
        scores = torch.tensor([[[3.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
        Y = PermutationNet(3, relaxation=relaxation, gamma=100.0).relax(scores)
        expected = {"softmax": [0, 0, 2]}.get(relaxation, [1, 0, 2])
        assert Y[0].argmax(dim=1).tolist() == expected

    @pytest.mark.parametrize("relaxation", RELAXATIONS)
    def test_training_gradient_is_that_of_finite_differences(self, relaxation):
        model = PermutationNet(4, relaxation=relaxation, gamma=0.7).double()
        scores = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.autograd.gradcheck(model.relax, scores.requires_grad_())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_patches": 0}, "`PermutationNet(num_patches=...)` must be a positive integer"),
            (
                {"relaxation": "hard"},
                "`PermutationNet(relaxation=...)` must be one of 'sinkhorn', 'birkhoff', 'softmax'",
            ),
            ({"gamma": -1.0}, "`PermutationNet(gamma=...)` must be positive and finite"),
            ({"num_features": 6}, "`PermutationNet(num_features=...)` must be a multiple of 4, got 6"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            PermutationNet(**{"num_patches": 4, **arguments})

    def test_wrong_input_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("shape (B, 4, 1, h, w), got (2, 5, 1, 4, 4)")):
            PermutationNet(4)(torch.zeros(2, 5, 1, 4, 4))
