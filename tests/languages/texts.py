# ruff: noqa: RUF001 (letters of many scripts)
"""Languages of spaCy: their tokenizers, the packages that these need, and texts."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any

import pytest
import spacy


@dataclass(frozen=True)
class Language:
    """One language.

    texts: some that are hard for pieces or tokens.
    config: of the blank pipeline.
    packages: modules that spaCy's tokenizer imports.
    """

    code: str
    texts: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    def blank(self) -> Any:
        """Make a blank pipeline. Skips the test if a package is not installed."""
        for package in self.packages:
            pytest.importorskip(package, exc_type=ImportError)
        return spacy.blank(self.code, config=self.config)


def rules(name: str) -> dict[str, Any]:
    return {"nlp": {"tokenizer": {"@tokenizers": name}}}


FRENCH = "L'été, la forêt où naît le ruisseau reçut aujourd'hui vingt-deux élèves d'Orléans."

LANGUAGES = {
    "zh": Language("zh", ("我爱北京天安门，2021年去过iPhone店。", "她說「𠮷野家」很好吃 ！")),
    "ja": Language(
        "ja",
        ("私は東京タワーへ行きました。ｶﾞｯｺｳ", "がぎぐ か\u3099き\u3099く、コーヒー㈱を飲む"),
        packages=("sudachipy", "sudachidict_core"),
    ),
    "ko": Language(
        "ko",
        ("나는 서울에서 김치를 먹었다.", unicodedata.normalize("NFD", "한국어를 공부합니다!")),
        config=rules("spacy.Tokenizer.v1"),
    ),
    "th": Language("th", ("ผมอยู่ที่กรุงเทพมหานคร", "น้ำ กำลัง ๆ เปล่า"), packages=("pythainlp",)),
    "vi": Language("vi", ("Tôi sống ở Hà Nội, Việt Nam.", "Đường phố"), packages=("pyvi",)),
    "vi-rules": Language(
        "vi",
        ("Tôi sống ở Hà Nội, Việt Nam.", unicodedata.normalize("NFD", "Trường học ở Huế")),
        config={
            "nlp": {"tokenizer": {"@tokenizers": "spacy.vi.VietnameseTokenizer", "use_pyvi": False}}
        },
    ),
    "ar": Language("ar", ("مرحبـــــا بالعالم، كيف حالك؟", "كَتَبَ الطَّالِبُ ٱلدَّرْسَ ﷺ لا ﻻ")),
    "he": Language("he", ("שָׁלוֹם עוֹלָם, מה שלומך?", "צה״ל ות״א בְּרֵאשִׁית")),
    "fa": Language("fa", ("می‌خواهم به تهران بروم؛ کتاب‌هایش را", "سلامـــــ ۱۴۰۰ ك ي")),
    "hi": Language("hi", ("मैं दिल्ली में रहता हूँ।", "क्षत्रिय ज़मीन ज\u093cमीन श्री१२")),
    "fr": Language("fr", (FRENCH, unicodedata.normalize("NFD", FRENCH))),
    "de": Language(
        "de", ("Die Donaudampfschifffahrtsgesellschaft fährt.", "STRASSE, Straße, ẞ und 10.000 €")
    ),
    "tr": Language("tr", ("İstanbul'da ILIK bir ışık; DİYARBAKIR İİ", "I\u0307zmir ıslak")),
    "el": Language("el", ("Ο Οδυσσεύς, ΟΔΥΣΣΕΥΣ και σοφός ΣΟΦΌΣ.", "ἄνθρωπος ᾠδή Ἀθῆναι")),
    "xx": Language(
        "xx",
        (
            "👩\u200d👩\u200d👧 and 🏳️\u200d🌈, 👍🏽 🇳🇴🇸🇪 1️⃣ ok",
            "e\u0301a\u0323\u0307 q\u0307\u0323 ①ﬁ½ ＡＢＣ \x00\x07 \u200b\ufeff x",
        ),
    ),
}
ODD = ("", " ", "\n \t", "\u3000\u00a0", "x")
LINES = [text for language in LANGUAGES.values() for text in language.texts]
