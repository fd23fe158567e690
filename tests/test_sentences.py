"""Where sentences end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.sentences import split_sentences


SENTENCES = """
А. С. Пушкин родился в 1799 г. в Москве.|Его отец служил.
Он жил на ул. Мира, д. 5, кв. 7.|Рядом была школа им. Н. И. Вавилова.
Население — 1,5 млн человек (на 1 янв. 2020 г.), т. е. немного.|Площадь — 12 тыс. кв. км.
В XIX в. и в начале XX в. город рос.|В 1905 г. Николай II подписал указ.
«Кто там?» — спросил он.|«Это я!» — ответила она.|Дверь открылась.
Он сказал: «Приду завтра».|И ушёл…|Больше его не видели?!|Нет.
Греки, римляне, финикийцы и т. д. жили у моря.|Они торговали.
Длина реки 3.5 км.|10 января 1920 года она замёрзла.
Первый абзац кончился.¶|второй начался¶¶|третий тоже
Город (лат. Roma, итал. Roma) стоит на Тибре.|Это столица.
В 476 г. н. э. империя пала.|Так кончилась древность.
"""


@pytest.mark.parametrize("line", SENTENCES.strip().splitlines())
def test_sentences_end_where_a_reader_would_say(line):
    expected = [part.replace("¶", "\n") if "¶" in part else part + " " for part in line.split("|")]
    assert split_sentences("".join(expected)) == expected


@given(st.text(alphabet=st.sampled_from("абвАБВ .!?…\n«»—г1,"), max_size=60))
def test_sentences_joined_are_the_text(text):
    assert "".join(split_sentences(text)) == text
