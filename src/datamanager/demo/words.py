"""Clinical text from a seed: names, drugs and notes that read and compress like the real thing.

Sentences are built from templates over seeded vocabularies and kept in a pool that is renewed a little with every
batch; a note joins sentences of the pool. Drawing whole sentences is what makes it fast (150 MB/s on one core); the
compound terms, names and measurements inside them keep the entropy of real notes (zstd -1 makes about 3.5 to 1 of
them, measured), where a small fixed pool would compress ten to one and flatter every backup tool.
"""

from __future__ import annotations

import random

import numpy as np


def _listed(text: str) -> tuple[str, ...]:
    """The phrases of a text, separated by commas or line ends."""
    return tuple(phrase.strip() for line in text.strip().splitlines() for phrase in line.split(",") if phrase.strip())


FIRST_NAMES = _listed("""
    Anna, Ben, Clara, David, Elena, Farid, Grace, Hugo, Irene, Jonas, Kira, Łukasz, María, Noah, Olga, Paulo, Quinn
    Rosa, Samir, Tereza, Umut, Vera, Walter, Xenia, Yusuf, Zoë, Björn, François, Søren, Siân, Željko, Иван, 美咲, José
    Renée, Günther""")
LAST_NAMES = _listed("""
    Adams, Brown, Castillo, Dvořák, Evans, Fischer, García, Hansen, Ivanova, Jones, Kowalski, Lefèvre, Müller, Nguyen
    O'Brien, Petrov, Quist, Rossi, Schäfer, Tanaka, Ueda, Vogel, Weiß, Xu, Yılmaz, Zhang, Ångström, Đorđević
    Søndergaard, Núñez, 佐藤, Smith, Okafor, Patel, Silva, Murphy, Haddad, Novak, Lindqvist, Costa""")
DRUGS = _listed("""
    amoxicillin, metformin, lisinopril, atorvastatin, amlodipine, omeprazole, levothyroxine, albuterol, gabapentin
    losartan, sertraline, furosemide, prednisone, tramadol, citalopram, warfarin, insulin, ibuprofen, cetirizine
    ramipril, bisoprolol, pantoprazole, simvastatin, azithromycin, doxycycline, fluoxetine, clopidogrel, montelukast
    naproxen, tamsulosin""")
_SYMPTOMS = _listed("""
    chest pain, shortness of breath, headache, dizziness, nausea, lower back pain, productive cough, sore throat
    fatigue, joint stiffness, abdominal cramps, palpitations, blurred vision, night sweats, loss of appetite
    ankle swelling, itching, numbness of the fingers, insomnia, heartburn, weight loss, fever with chills
    ear pressure, knee pain""")
_QUALITIES = _listed("""
    mild, moderate, severe, intermittent, constant, worsening, improving, sharp, dull, burning, throbbing, new""")
_SITES = _listed("""
    left shoulder, right knee, lumbar spine, lower abdomen, left ear, right lung base, neck, both hands, left hip
    scalp, right flank, epigastrium, left ankle, forearm, chest wall, sinus region""")
_TESTS = _listed("""
    CBC, TSH, lipid panel, HbA1c, urinalysis, chest X-ray, ECG, spirometry, ferritin, vitamin D, MRI of the spine
    ultrasound, stress test, culture, liver enzymes, creatinine""")
_TIMES = _listed("""
    waking, evening meals, standing, the night, exercise, climbing stairs, travel, work, rest, coughing, lifting""")
_PREFIXES = _listed("""
    cardio, myo, hepato, nephro, derm, osteo, arthro, gastro, neuro, pneumo, hemo, cysto, enchondro, angio, rhino, oto
    cholecysto, spondylo, phlebo, lympho, thyro, adeno, colo, broncho, encephalo, laryngo""")
_ROOTS = _listed("""
    path, scler, troph, plast, myel, vascul, megal, meter, lith, genes, stas, rhag, edem, ectas, spasm, malac""")
_SUFFIXES = _listed("""
    ic, itis, osis, oma, emia, algia, ectomy, oscopy, ology, opathy, uria, iasis, al, ous, ation""")

# Slots: S symptom, Q quality, L site, T test, W circumstance, D drug, C compound term, N name; numbers: p pressure,
# d dose, t temperature, n small count, r rate, f with a decimal, k identifier, m date.
_TEMPLATES = (
    "Q S of the L for n days, worse after W, pain f.",
    "BP p, pulse r, temp t, weight f kg, ref k.",
    "No S or S; no C exposure.",
    "S to the L since m, C type, Q.",
    "D d mg bid, T in n weeks; N to call, k.",
    "Began D d mg for Q S and C, N agrees.",
    "T m: f, previously f; C, see k.",
    "L: Q, no C or C, N present.",
    "C and C by Dr. N, m, file k.",
    "T and T to Dr. N, k, m.",
    "Stopped D and D on m owing to S.",
    "Mother: C; father: C, C; sister: S.",
    "Discussed W, D and C with N.",
    "Dr. N to see Q S, case k, m.",
    "Impression: C, Q S; rule out C and C.",
    "Lungs clear, HR r, L without C or C.",
    "Review in n weeks if S or Q S; T f.",
    "Tolerates D d mg, n refills on m, lot k.",
    "SpO2 r, BP p lying, p standing, T f.",
    "D causes Q S, seen m by N, code k.",
    "Wound L n cm, Q, C; dressed by N m.",
    "Lab k: T f, T f, T f.",
    "N asks about S and D d mg; rest until m.",
    "D d mg for n days, then T, then N; C likely.",
)

_POOL_SENTENCES = 24_000
# Sentences of the pool replaced per note drawn (a note holds 14): a compressor's window sees few sentences twice.
_RENEWED_PER_NOTE = 0.75


class ClinicText:
    """An endless, seeded source of notes and small texts; not thread-safe."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._compounds = [p + r + s for p in _PREFIXES for r in _ROOTS for s in _SUFFIXES]
        self._random.shuffle(self._compounds)
        self._pool = [self.sentence() for _ in range(_POOL_SENTENCES)]

    def sentence(self) -> str:
        """One sentence of a template, 20 to 110 characters."""
        template = _TEMPLATES[int(self._random.random() * len(_TEMPLATES))]
        return " ".join([self._fill(word) for word in template.split(" ")])

    def name(self) -> tuple[str, str]:
        """First and last name; some hold letters outside ASCII."""
        return self._random.choice(FIRST_NAMES), self._random.choice(LAST_NAMES)

    def compound(self) -> str:
        """A medical term; the first of the shuffled list come far more often, as words do."""
        return self._compounds[int(self._random.random() ** 2 * len(self._compounds))]

    def notes(self, count: int) -> list[str]:
        """``count`` notes of one to some fifty sentences: most below 2 kB, one in thirty longer."""
        for _ in range(int(count * _RENEWED_PER_NOTE)):
            self._pool[self._random.randrange(_POOL_SENTENCES)] = self.sentence()
        lengths = self._numbers.poisson(13, count) + 1
        lengths[self._numbers.random(count) < 1 / 30] += 32
        drawn = (self._numbers.random(int(lengths.sum())) * _POOL_SENTENCES).astype(np.int64).tolist()
        pool, notes, at = self._pool, [], 0
        for length in lengths.tolist():
            notes.append(" ".join([pool[index] for index in drawn[at : at + length]]))
            at += length
        return notes

    def _fill(self, word: str) -> str:
        """A slot letter, perhaps with punctuation behind it, becomes its text; any other word stays."""
        if len(word) > 2 or word[0] not in "SQLTWDCNpdtnrfkm":
            return word
        if len(word) == 2 and word[1] not in ".,;:":
            return word
        return self._slot(word[0]) + word[1:]

    def _slot(self, letter: str) -> str:
        draw = self._random.random
        match letter:
            case "C":
                return self.compound()
            case "N":
                return LAST_NAMES[int(draw() * len(LAST_NAMES))]
            case "p":
                return f"{95 + int(draw() * 90)}/{55 + int(draw() * 50)}"
            case "d":
                return f"{int(draw() * 80 + 1) * 5 / 2:g}"
            case "t":
                return f"{36 + draw() * 4:.1f}"
            case "n":
                return str(1 + int(draw() * 14))
            case "r":
                return str(50 + int(draw() * 70))
            case "f":
                return f"{draw() * 150:.1f}"
            case "k":
                return f"{int(draw() * 1e8):08d}"
            case "m":
                return f"20{10 + int(draw() * 16)}-{1 + int(draw() * 12):02d}-{1 + int(draw() * 28):02d}"
        words = _WORDS[letter]
        return words[int(draw() * len(words))]


_WORDS = {"S": _SYMPTOMS, "Q": _QUALITIES, "L": _SITES, "T": _TESTS, "W": _TIMES, "D": DRUGS}
