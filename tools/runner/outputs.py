"""The outputs of a cell as they are kept: plain, merged, and as a terminal would show them in the end."""
import json
import re

from runner.text import plain

WIDGET = "application/vnd.jupyter.widget-view+json"


def settle(line: str) -> str:
    "One line as a terminal would show it in the end: carriage returns and backspaces obeyed."
    line = line[:-1] if line.endswith("\r") else line
    if not re.search(r"[\r\b]|\x1b\[\d*[A-K]", line):
        return line
    line = re.sub(r"\x1b\[\d*[A-JK]", "", line)
    if "\x1b" in line:                                     # coloured: the last state is the one to see
        return re.sub(r"[^\b]\b", "", next((p for p in reversed(line.split("\r")) if p), ""))
    shown, at = [], 0
    for ch in line:
        if ch == "\r":
            at = 0
        elif ch == "\b":
            at = max(0, at - 1)
        else:
            shown[at:at + 1] = ch
            at += 1
    return "".join(shown).rstrip()


def tidy_outputs(outputs: list) -> list[dict]:
    """Outputs as plain dicts, fit for a file: streams between two rich outputs merged (stdout first: how the two
    alternate is chance), progress bars in their last state only, no widget views, which need a state to be alive."""
    tidy: list[dict] = []
    group: dict[str, str] = {}

    def close():
        for name in sorted(group, reverse=True):
            text = "\n".join(map(settle, group[name].split("\n")))
            if text.strip("\n") or "\r" not in group[name]:
                tidy.append({"output_type": "stream", "name": name, "text": text})
        group.clear()
    # halves of characters cannot be saved
    for o in json.loads(json.dumps(outputs, ensure_ascii=False).encode("utf-8", "replace")):
        if o["output_type"] == "stream":
            group[o["name"]] = group.get(o["name"], "") + o["text"]
            continue
        close()
        if "data" in o:
            o["data"].pop(WIDGET, None)
        tidy.append(o)
    close()
    return tidy


def shown_text(outputs: list[dict]) -> str:
    "What the outputs say, as text."
    texts = [o["text"] if o["output_type"] == "stream" else o.get("data", {}).get("text/plain", "") for o in outputs]
    return plain("\n".join(("".join(t) if isinstance(t, list) else str(t)).rstrip("\n") for t in texts if t))
