"""NPP in causal language models of transformers: their own loss at p = 1, patches of their own embeddings before."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")

from nppkit.errors import NppkitError  # noqa: E402
from nppkit.hugging_face import PatchSchedule, next_patch  # noqa: E402
from nppkit.schedule import drawn_segments, multi_scale_segments, single_scale_segments  # noqa: E402

V, N = 50, 24


def llama():
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, max_position_embeddings=64, **sizes))


def gpt2():
    sizes = dict(n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_positions=64, **sizes))


@pytest.fixture(params=[llama, gpt2])
def pair(request):
    """The model as it is, and the same able to train on patches."""
    torch.manual_seed(0)
    model = request.param().train()
    return model, next_patch(next_patch(copy.deepcopy(model)))  # a notebook's cell may run twice


def batch(n=3, length=N):
    return torch.randint(V, (n, length), generator=torch.Generator().manual_seed(1))


def test_patch_size_one_is_the_models_own(pair):
    """Loss and gradients at p = 1, with padding and labels that are not scored, and in eval mode at any p."""
    _, ours = pair
    ids, labels = batch(), batch()
    labels[0, 15:], mask = -100, torch.ones(3, N, dtype=torch.long)
    mask[0, 15:] = 0
    losses = [model(input_ids=ids, attention_mask=mask, labels=labels).loss for model in pair]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    grads = [torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, pair, strict=True)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    ours.patch_size = (4,)
    torch.testing.assert_close(*(model.eval()(input_ids=ids, labels=labels).loss for model in pair), rtol=0, atol=1e-6)


def test_patches_predict_the_next_patch(pair):
    """At K = 4: the mean of four embeddings goes in, and each prediction is scored against the next four tokens (Eq. 1 and 2)."""
    own, ours = pair
    ids = batch()
    means = own.get_input_embeddings()(ids).view(3, N // 4, 4, -1).mean(2)
    logits = own(inputs_embeds=means).logits[:, :-1]
    expected = F.cross_entropy(logits[:, :, None].expand(-1, -1, 4, -1).flatten(0, 2), ids.view(3, -1, 4)[:, 1:].flatten())
    ours.patch_size = (4,)
    torch.testing.assert_close(ours(input_ids=ids, labels=ids).loss, expected)
    assert ours(input_ids=ids).logits.shape == (3, N // 4, V)


def test_labels_that_are_not_scored(pair):
    """The mean is over all labels that count, wherever in a patch they are, and their number over a Trainer's whole batch."""
    _, ours = pair
    ids, labels = batch(), batch()
    labels[:, 5:11] = -100
    ours.patch_size = (4,)
    output = ours(input_ids=ids, labels=labels)
    targets = labels.view(3, -1, 4)[:, 1:]
    every = F.cross_entropy(output.logits[:, :-1, None].expand(-1, -1, 4, -1).flatten(0, 2), targets.flatten(), reduction="none")
    torch.testing.assert_close(output.loss, every.sum() / (targets != -100).sum())
    twice = ours(input_ids=ids, labels=labels, num_items_in_batch=2 * (labels[:, 1:] != -100).sum()).loss
    torch.testing.assert_close(twice, output.loss / 2)


@pytest.mark.parametrize("items", [None, 30, torch.tensor(30)])
def test_nothing_scored(pair, items):
    """No second patch, no label in one, no label at all: the loss is 0, and so are its gradients."""
    _, ours = pair
    ours.patch_size = (4,)
    ids, first = batch(), batch()
    first[:, 4:] = -100
    for x, labels in ((ids[:, :4], ids[:, :4]), (ids, first), (ids, torch.full_like(ids, -100))):
        ours.zero_grad()
        loss = ours(input_ids=x, labels=labels, num_items_in_batch=items).loss
        loss.backward()
        assert loss == 0 and all(weight.grad is None or not weight.grad.any() for weight in ours.parameters())


def test_padded_patches_are_not_attended_to(pair):
    """What stands in a padded place changes nothing."""
    _, ours = pair
    ours.patch_size = (4,)
    ids, mask = batch(), torch.ones(3, N, dtype=torch.long)
    mask[:, 8:12] = 0
    changed = ids.clone()
    changed[:, 8:12] = 0
    logits = [ours(input_ids=x, attention_mask=mask).logits[:, 3:] for x in (ids, changed)]
    torch.testing.assert_close(*logits)


def test_image_behind_a_text(pair):
    """Patches over the 4 x 6 grid behind a prefix alone: the prefix's last place predicts the first patch."""
    own, _ = pair
    model = next_patch(copy.deepcopy(own), grid=(4, 6), prefix=3)
    ids = batch(length=3 + 24)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, own(input_ids=ids, labels=ids).loss, rtol=0, atol=1e-6)
    model.patch_size = (2, 3)
    embed, image = own.get_input_embeddings(), ids[:, 3:].view(3, 2, 2, 2, 3).transpose(2, 3).reshape(3, 4, 6)
    logits = own(inputs_embeds=torch.cat([embed(ids[:, :3]), embed(image).mean(2)], 1)).logits[:, :-1]
    text, windows = logits[:, :2].flatten(0, 1), logits[:, 2:, None].expand(-1, -1, 6, -1).flatten(0, 2)
    expected = F.cross_entropy(torch.cat([text, windows]), torch.cat([ids[:, 1:3].flatten(), image.flatten()]))
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)  # each of the 26 labels counts once
    model.patch_size = (3, 3)
    with pytest.raises(NppkitError, match="patch_size 3 does not divide the 4 x 6 grid along h"):
        model(input_ids=ids, labels=ids)
    for prefix in (2, 5, 30):
        with pytest.raises(NppkitError, match="tokens do not fill the 4 x 6 grid"):
            next_patch(model, grid=(4, 6), prefix=prefix)(input_ids=ids, labels=ids)
    text, model.patch_size = next_patch(model, prefix=27), (4,)
    torch.testing.assert_close(text(input_ids=ids, labels=ids).loss, own(input_ids=ids, labels=ids).loss)


class Texts(Dataset):
    """Twelve texts; the labels of the last `unscored` are all -100."""

    def __init__(self, unscored=0):
        self.ids, self.labels = batch(12), batch(12)
        self.labels[12 - unscored :] = -100

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


LEVELS = multi_scale_segments(300, 3, "1/2", coarsest=(4,))


def lengths_of_training(model, folder, segments=LEVELS, steps=8, **changes):
    """The sequence lengths that a Trainer's steps have, by default by the schedule #L = 3, K = 4, 2, 1."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    arguments = dict(max_steps=steps, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, save_steps=3)
    arguments = transformers.TrainingArguments(str(folder), **arguments)
    trainer = transformers.Trainer(model, arguments, train_dataset=Texts(), callbacks=[PatchSchedule(segments)])
    trainer.train(**changes)
    hook.remove()
    return seen, {name: value.clone() for name, value in model.state_dict().items()}


def test_trainer_follows_the_schedule(pair, tmp_path):
    """A Trainer of 8 steps: K = 4 for two, 2 for two, 1 for four. Stopped and resumed it ends in the same weights."""
    _, model = pair
    again = copy.deepcopy(model)
    seen, weights = lengths_of_training(model, tmp_path)
    assert seen == [N // 4] * 2 + [N // 2] * 2 + [N] * 4
    resumed, same = lengths_of_training(again, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed == seen[3:]
    for name, value in weights.items():
        torch.testing.assert_close(same[name], value)


def test_trainer_follows_levels_that_are_drawn(pair, tmp_path):
    """K = 4 for about half of the steps, less and less often, else single tokens; the same in a resumed training."""
    _, model = pair
    again, drawn = copy.deepcopy(model), drawn_segments(3, (4,), "1/2")
    seen, _ = lengths_of_training(model, tmp_path, drawn, steps=20)
    coarse = [length == N // 4 for length in seen]
    assert set(seen) == {N // 4, N} and sum(coarse[:10]) > 5 > sum(coarse[10:])
    assert lengths_of_training(again, tmp_path, drawn, 20, resume_from_checkpoint=str(tmp_path / "checkpoint-9"))[0] == seen[9:]


def test_trainer_that_smooths_labels(pair, tmp_path):
    """It does so outside of the model, token by token: refused by name before the first step."""
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, label_smoothing_factor=0.1)
    trainer = transformers.Trainer(pair[1], arguments, train_dataset=Texts(), callbacks=[PatchSchedule(LEVELS)])
    with pytest.raises(NppkitError, match=r"label_smoothing_factor 0\.1"):
        trainer.train()


def test_a_mixture_of_experts_keeps_its_balance(monkeypatch):
    """The loss on patches has the term that the model adds by itself at patch size 1."""
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
    experts = dict(num_local_experts=4, num_experts_per_tok=2, output_router_logits=True)
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(vocab_size=V, **sizes, **experts)).train()
    model, losses = next_patch(model), {}
    for model.patch_size in (1, (4,)):
        for model.config.router_aux_loss_coef in (0.0, 1.0):
            model.router_aux_loss_coef = model.config.router_aux_loss_coef
            output = model(input_ids=batch(), labels=batch())
            losses[model.router_aux_loss_coef] = output.loss.item()
        assert losses[1.0] - losses[0.0] == pytest.approx(output.aux_loss.item(), rel=1e-3) and output.aux_loss > 1
    del model.config.router_aux_loss_coef  # as some models name it otherwise
    monkeypatch.delattr(transformers.MixtralConfig, "router_aux_loss_coef")
    with pytest.raises(NppkitError, match="MixtralForCausalLM: no router_aux_loss_coef"):
        model(input_ids=batch(), labels=batch())


def test_trainer_with_a_piece_that_is_not_scored(pair, tmp_path):
    """Three of twelve pieces of a Trainer's batch have no label: the loss is the mean over the labels of the others."""
    _, model = pair
    model.patch_size = (4,)
    texts = Texts(unscored=3)
    expected = model(input_ids=texts.ids, labels=texts.labels).loss.item()
    arguments = dict(max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=12, learning_rate=0.0)
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, **arguments)
    trainer = transformers.Trainer(model, arguments, train_dataset=texts)
    assert trainer.train().training_loss == pytest.approx(expected, rel=0.05)  # of 24 labels a Trainer may count the first


def test_saved_and_generated_as_before(pair, tmp_path):
    """A model that trained on patches is saved under its own name and generates like the one it was."""
    own, ours = pair
    ours.patch_size = (4,)
    ours.save_pretrained(tmp_path)
    again = type(own).from_pretrained(tmp_path)
    assert again.config.architectures == [type(own).__name__]
    padded = torch.ones(3, N, dtype=torch.long)
    padded[0, :9] = 0
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    for mask in (None, padded):
        a, b = (model.eval().generate(batch(), attention_mask=mask, **options) for model in (again, ours))
        assert torch.equal(a.sequences, b.sequences) and torch.equal(torch.stack(a.logits), torch.stack(b.logits))


def test_pickled(pair, tmp_path):
    """torch.save keeps a model with its patch size, grid and prefix, as it keeps the one it was."""
    model = next_patch(pair[1], grid=(4, 6), prefix=3)
    for model.patch_size in (1, (2, 3)):
        torch.save(model, tmp_path / "model.pt")
        again = torch.load(tmp_path / "model.pt", weights_only=False)
        ids = batch(length=3 + 24)
        assert again.patch_size == model.patch_size
        assert torch.equal(again(input_ids=ids, labels=ids).loss, model(input_ids=ids, labels=ids).loss)


def test_called_as_the_model_is(pair):
    """Its signature, arguments by place, and tuples with the loss in front, whether the patch size is 1 or not."""
    own, ours = pair
    ids, mask = batch(), torch.ones(3, N, dtype=torch.long)
    mask[0, 20:] = 0
    names = list(inspect.signature(own.forward).parameters)
    assert list(inspect.signature(ours.forward).parameters) == names
    by_place = [dict(input_ids=ids, attention_mask=mask).get(name) for name in names[:3]]
    for model, patch_size in ((own, 1), (ours, 1), (ours, (4,))):
        model.patch_size = patch_size
        named = model(input_ids=ids, attention_mask=mask, labels=ids)
        for loss, logits, *_ in (model(*by_place, labels=ids, return_dict=False), named.to_tuple()):
            assert torch.equal(loss, named.loss) and torch.equal(logits, named.logits)


@pytest.mark.parametrize("name", ["inputs_embeds", "position_ids", "token_type_ids", "shift_labels", "logits_to_keep"])
def test_inputs_that_cannot_be_grouped(pair, name):
    """What else is given for each token is refused by name."""
    _, ours = pair
    ours.patch_size = (4,)
    for inputs in (dict(input_ids=batch()), {}):
        with pytest.raises(NppkitError, match=f"input_ids alone.*{name}"):
            ours(**inputs, labels=batch(), **{name: batch()})


def test_masks_of_pairs_of_tokens(pair):
    """Such as packed texts have: of a patch it is not defined, and the line says which mask is."""
    _, ours = pair
    ours.patch_size = (4,)
    with pytest.raises(NppkitError, match=r"attention_mask \[3, 1, 24, 24\] is not that of input_ids \[3, 24\]"):
        ours(input_ids=batch(), attention_mask=torch.ones(3, 1, N, N), labels=batch())


def test_schedule_of_a_model_without_patches(pair):
    """A model that was not given to next_patch is named."""
    own, _ = pair
    state = type("State", (), dict(global_step=0, max_steps=8))
    with pytest.raises(NppkitError, match="next_patch first"):
        PatchSchedule(single_scale_segments(3, (4,), "2/3")).on_step_begin(None, state, None, model=own)
