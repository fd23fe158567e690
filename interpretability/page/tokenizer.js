"use strict";
// From text to token ids, as in corpus/sentences.py and corpus/tokenizer.py: sentences, then pieces of about
// a word, then byte-level BPE in each piece. The regular expressions are the same, with Python's \s and \w
// written out, since they mean something else in JavaScript.

const SPACE = String.raw`\p{White_Space}\x1c-\x1f`; // Python's \s, for use inside [ ]
const WORD = String.raw`\p{L}\p{N}_`; // Python's \w, for use inside [ ]

const BOUNDARY = new RegExp(
  String.raw`(?<![.!?…])(?:(\.)(?![.!?…])|[.!?…]+)[»"”’')\]]{0,4}[${SPACE}]+` +
    String.raw`(?=[«"„“‘\x60'(\[\u2014\u2013*\-]{0,4}[${SPACE}]{0,2}[A-ZА-ЯЁ0-9])` +
    String.raw`|[.!?…][»"”)]{0,4}[${SPACE}]*\n[${SPACE}]*` +
    String.raw`|\n[${SPACE}]*\n[${SPACE}]*`,
  "gu",
);
const DROPPED = /[\u00ad\u200b\ufeff]/g; // as in corpus/sources.py
const LAST_WORD = new RegExp(String.raw`[${WORD}\-]+(?=\n?$)`, "u");
const BLANK_END = new RegExp(String.raw`(?<![${SPACE}])[${SPACE}]+$`, "u");

// A word with the space before it, a number, punctuation (with a sentence's last space), other white space
const PIECES = new RegExp(
  [
    String.raw` ?[\p{L}\p{M}]+`,
    String.raw` ?\p{N}+`,
    String.raw` ?[^\p{White_Space}\p{L}\p{M}\p{N}]+(?:\p{White_Space}+$)?`,
    String.raw`\p{White_Space}+(?!\P{White_Space})`,
    String.raw`\p{White_Space}+`,
  ].join("|"),
  "gu",
);

class Tokenizer {
  /**
   * byte_ids: the token of each of the 256 bytes. merges: for each merge three tokens (left, right, merged),
   * all in one list, the merge learned first comes first. abbreviations and openings: the word lists of
   * corpus/sentences.py.
   */
  constructor({ vocab_size, eos, byte_ids, merges, abbreviations, openings }) {
    this.vocab_size = vocab_size;
    this.eos = eos;
    this.byte_ids = byte_ids;
    this.bytes = Array.from({ length: vocab_size }, () => []); // of each token, the bytes it stands for
    byte_ids.forEach((id, byte) => (this.bytes[id] = [byte]));
    this.rules = new Map(); // a pair of tokens -> [rank, merged token]
    for (let i = 0; i < merges.length; i += 3) {
      const [left, right, merged] = merges.slice(i, i + 3);
      this.rules.set(left * vocab_size + right, [i / 3, merged]);
      this.bytes[merged] = [...this.bytes[left], ...this.bytes[right]];
    }
    this.abbreviations = new Set(abbreviations);
    const words = openings.map((word) => word[0].toUpperCase() + word.slice(1)).join("|");
    this.new_sentence = new RegExp(`[^${WORD}${SPACE}]*(?:${words})[${SPACE}]`, "uy");
    this.known = new Map(); // pieces encoded before -> their tokens
  }

  /** The sentences of a text, each with the white space behind it; joined they are the text. */
  split_sentences(text) {
    const sentences = [];
    let start = 0;
    for (const match of text.matchAll(BOUNDARY)) {
      const end = match.index + match[0].length;
      if (match[1]) {
        const word = text.slice(Math.max(start, match.index - 16), match.index).match(LAST_WORD)?.[0] ?? "";
        const initial = [...word].length === 1 && /^\p{Uppercase}$/u.test(word);
        this.new_sentence.lastIndex = end;
        const abbreviation = this.abbreviations.has(word.toLowerCase());
        if (initial || (abbreviation && !this.new_sentence.test(text))) continue;
      }
      sentences.push(text.slice(start, end));
      start = end;
    }
    if (start < text.length) sentences.push(text.slice(start));
    return sentences;
  }

  /**
   * How BPE encodes a piece: [{ids, at, rank}], one entry per step. The first entry has the tokens of the
   * bytes, the last the final tokens. at: the index of the token just merged; rank: the number of the merge.
   * Both are -1 in the first entry.
   */
  merge_steps(piece) {
    let ids = Array.from(new TextEncoder().encode(piece), (byte) => this.byte_ids[byte]);
    const steps = [{ ids, at: -1, rank: -1 }];
    while (true) {
      let best = null; // the pair whose merge was learned first
      for (let at = 0; at + 1 < ids.length; at++) {
        const rule = this.rules.get(ids[at] * this.vocab_size + ids[at + 1]);
        if (rule && (!best || rule[0] < best.rank)) best = { at, rank: rule[0], merged: rule[1] };
      }
      if (!best) return steps;
      ids = [...ids.slice(0, best.at), best.merged, ...ids.slice(best.at + 2)];
      steps.push({ ids, at: best.at, rank: best.rank });
    }
  }

  encode_piece(piece) {
    if (!this.known.has(piece)) {
      if (this.known.size > 20000) this.known.clear();
      this.known.set(piece, this.merge_steps(piece).at(-1).ids);
    }
    return this.known.get(piece);
  }

  /** The tokens of a text, <EOS> after every sentence: [{id, piece}], each with the piece it is a part of. */
  encode(text) {
    const tokens = [];
    for (const sentence of this.split_sentences(text)) {
      for (const [piece] of sentence.matchAll(PIECES)) {
        for (const id of this.encode_piece(piece)) tokens.push({ id, piece });
      }
      tokens.push({ id: this.eos, piece: "" });
    }
    return tokens;
  }

  /**
   * The tokens of a prompt after an <EOS>. The last sentence is followed by <EOS> only if it is finished.
   * next: the word that will follow it; a small letter continues the sentence even after a full stop.
   */
  encode_prompt(prompt, next = "А") {
    prompt = prompt.replace(/\p{Surrogate}/gu, "?").replace(DROPPED, "").normalize("NFC");
    prompt = prompt.replace(BLANK_END, "");
    const finished = prompt && this.split_sentences(`${prompt} ${next}`).at(-1) === next;
    const tokens = this.encode(finished ? prompt + " " : prompt);
    return [{ id: this.eos, piece: "" }, ...(finished ? tokens : tokens.slice(0, -1))];
  }

  /** The text of a list of tokens. <EOS> is left out. */
  decode(ids) {
    return new TextDecoder().decode(new Uint8Array(ids.flatMap((id) => this.bytes[id])));
  }

  /** A token with visible white space: · a space, ↵ a line feed. Parts of a character: hexadecimal bytes. */
  label(id) {
    if (id === this.eos) return "<EOS>";
    let label = "";
    const bytes = this.bytes[id];
    for (let at = 0; at < bytes.length; ) {
      const length = bytes[at] < 0x80 ? 1 : bytes[at] < 0xe0 ? 2 : bytes[at] < 0xf0 ? 3 : 4;
      let character = null;
      try {
        const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
        character = decoder.decode(new Uint8Array(bytes.slice(at, at + length)));
      } catch {} // no whole character begins here
      label += character ?? `‹${hex(bytes[at])}›`;
      at += character === null ? 1 : length;
    }
    const visible = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
    return label.replace(/[ \n\t\r\u00a0]/g, (character) => visible[character]);
  }
}

const hex = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
