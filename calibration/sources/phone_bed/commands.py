"""Templates of commands, and voices for speech, by language and split."""

from __future__ import annotations

from typing import Final, Literal

Split = Literal["train", "validation", "test"]
Language = Literal["en", "zh"]

TOKENS: Final = 48
"""Length of a written command in tokens, which are UTF-8 bytes plus 1, padded with 0."""

TEMPLATES: Final[dict[Language, dict[Split, tuple[str, ...]]]] = {
    "en": {
        "train": (
            "open {}",
            "tap {}",
            "press {}",
            "click on {}",
            "go to {}",
            "show me {}",
            "launch {}",
            "please open the {}",
            "tap the {}",
            "press the {} icon",
            "click the {} button",
            "where is {}",
            "find the {} icon",
            "choose {}",
            "i need {}",
            "take me to {}",
            "start {} please",
            "hit the {} button",
            "could you open {}",
            "select {} for me",
            "{}",
            "{} icon",
            "{} is what i want",
            "{} app",
            "i would like {} opened",
        ),
        "validation": (
            "touch {} now",
            "i want to use {}",
            "bring up {}",
            "switch to {}",
            "{} right away",
        ),
        "test": (
            "open up the {}",
            "please tap on {}",
            "can you press {}",
            "let me see {}",
            "run {} for me",
            "{} please",
        ),
    },
    "zh": {
        "train": (
            "打开{}",
            "点击{}",
            "点一下{}",
            "启动{}",
            "进入{}",
            "请打开{}",
            "帮我打开{}",
            "我要{}",
            "按{}",
            "选择{}",
            "去{}",
            "找到{}",
            "请点击{}图标",
            "显示{}",
            "{}在哪里",
            "帮我找{}",
            "点开{}",
            "请选择{}",
            "运行{}",
            "我想打开{}",
            "{}",
            "{}图标",
            "{}给我看看",
            "让{}显示出来",
            "将{}启动",
        ),
        "validation": ("切换到{}", "轻触{}", "帮忙点一下{}", "我需要{}", "{}快启动"),
        "test": ("麻烦打开{}", "请帮我点{}", "按一下{}图标", "我想看{}", "现在进入{}", "把{}打开"),
    },
}
"""Templates of commands; no template is in two splits."""

VARIANTS: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "",
        "+m1",
        "+m3",
        "+m4",
        "+m6",
        "+m8",
        "+f1",
        "+Annie",
        "+Andy",
        "+Gene",
        "+Lee",
        "+Mario",
        "+linda",
        "+benjamin",
        "+steph",
        "+paul",
        "+belinda",
        "+michel",
    ),
    "validation": ("+m7", "+aunty", "+ed"),
    "test": ("+m2", "+m5", "+Andrea", "+f4", "+david"),
}
"""Voice variants of espeak-ng by split; no variant is in two splits. f2, f3, f5 and Alicia are left
out because their output is not reproducible: their echo starts from uninitialized memory."""

_ACCENTS: Final[dict[Language, tuple[str, ...]]] = {"en": ("en-us", "en"), "zh": ("cmn",)}
"""Voices of espeak-ng: ``en`` is British English, ``cmn`` reads Chinese characters."""

VOICES: Final[dict[Language, dict[Split, tuple[str, ...]]]] = {
    language: {
        split: tuple(accent + variant for accent in accents for variant in variants)
        for split, variants in VARIANTS.items()
    }
    for language, accents in _ACCENTS.items()
}


def tokens_from_text(text: str) -> list[int]:
    """Return UTF-8 bytes plus 1, truncated to ``TOKENS`` at a whole character, padded with 0."""
    content = text.encode()[:TOKENS].decode(errors="ignore").encode()
    return [byte + 1 for byte in content] + [0] * (TOKENS - len(content))
