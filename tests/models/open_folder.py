"""Opens saved folders as a user without lorap_exp does; prints what it finds as JSON."""

import json
import sys
from pathlib import Path

sys.modules["lorap_exp"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)


def look(folder: Path, ids: torch.Tensor) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer("text")["input_ids"]
    base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    hidden = base(ids).last_hidden_state
    torch.testing.assert_close(model.base_model(ids).last_hidden_state, hidden)
    found = {
        "logits": model(ids).logits.double().sum().item(),
        "classes": [type(model).__name__],
        "base": type(base).__name__,
    }
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True).eval()
    found["again"] = again(ids).logits.double().sum().item()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones(1, 9).long()
    alone = model.generate(ids[:1, :9], attention_mask=mask, **options)
    plain = model.generate(ids[:1, :9], attention_mask=mask, use_cache=False, **options)
    padded = torch.zeros(2, 16).long()
    padded[0, 7:], padded[1] = ids[0, :9], ids[1]
    mask = (torch.arange(16) >= torch.tensor([[7], [0]])).long()
    together = model.generate(padded, attention_mask=mask, **options)
    found["alone"], found["without_cache"] = alone[0, 9:].tolist(), plain[0, 9:].tolist()
    found["left_padded"] = together[0, 16:].tolist()
    auto = json.loads((folder / "config.json").read_text())["auto_map"]
    found["has_classifier"] = "AutoModelForSequenceClassification" in auto
    if found["has_classifier"]:
        classifier = AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=True, num_labels=3
        ).eval()
        equal = torch.equal(classifier.base_model(ids).last_hidden_state, hidden)
        found["classifier"] = {"base_equal": equal, "classes": classifier(ids).logits.shape[-1]}
    else:
        found["classifier"] = {}
    return found


root, *names = sys.argv[1:]
tokens = torch.load(Path(root) / "ids.pt")
torch.set_grad_enabled(False)
print(json.dumps({name: look(Path(root) / name, tokens) for name in names}))
