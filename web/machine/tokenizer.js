// Text to ids and back, exactly as `BpeTokenizer` does it, from the same tokenizer.json; and a pattern of Python's `regex`, said in JavaScript's.
{
class Refused extends Error {}   // its message is one sentence for the reader

const refuse = why => { throw new Refused(why) }

// ---- Patterns

const CASES = {s: "sSſ", S: "sSſ", k: "kK\u212a", K: "kK\u212a", i: "iI\u0130", I: "iI\u0131"}   // as `regex` has them; other letters of ASCII have two

function ignoringCase(letter) {
  if (/[a-zA-Z]/.test(letter)) return CASES[letter] ?? letter.toLowerCase() + letter.toUpperCase()
  if (letter.toLowerCase() !== letter.toUpperCase()) refuse(`The tokenizer's pattern ignores the case of ${letter}, which this page does not support.`)
  return letter
}

function translated(pattern) {
  const letters = [...pattern]
  let at = 0, names = 0
  const cannot = what => refuse(`The tokenizer's pattern uses ${what}, which this page does not support.`)
  const take = word => letters.slice(at, at + word.length).join("") === word && (at += word.length, true)
  const literal = letter => /[\^$\\.*+?()[\]{}|/]/.test(letter) ? "\\" + letter : letter

  // What a possessive quantifier or an atomic group has taken it never gives back. A lookahead does not, either.
  const atomic = inside => `(?:(?=(?<only${++names}>${inside}))\\k<only${names}>)`

  function plain(letter, folds, inSet) {   // a letter that stands for itself, or for itself in both cases
    const cases = folds ? ignoringCase(letter) : letter
    const said = [...cases].map(literal).join("")
    return cases.length > letter.length && !inSet ? `[${said}]` : said
  }

  function alternatives(folds) {   // up to a closing bracket, or the end
    let out = ""
    while (at < letters.length && letters[at] !== ")") out += take("|") ? "|" : repeated(folds)
    return out
  }

  function repeated(folds) {
    const atom = one(folds), found = letters.slice(at).join("").match(/^(?:[*+?]|\{(\d*)(,?)(\d*)\})/)
    if (!found || found[0] === "{}") return atom
    at += found[0].length
    const many = found[0].startsWith("{,") ? `{0,${found[3]}}` : found[0]
    if (take("+")) return atomic(atom + many)
    return atom + many + (take("?") ? "?" : "")
  }

  function one(folds) {
    const letter = letters[at++]
    if (letter === "(") return group(folds)
    if (letter === "[") return set(folds)
    if (letter === "\\") return escaped(folds, false)
    if (letter === ".") return "[^\\n]"
    if (letter === "^") return "^"
    if (letter === "$") return "(?=\\n?$)"   // a last newline may follow
    if ("*+?".includes(letter)) cannot(`the quantifier ${letter} after nothing that it could repeat`)
    return plain(letter, folds, false)
  }

  function group(folds) {
    const kind = ["?:", "?i:", "?=", "?!", "?<=", "?<!", "?>"].find(take)
    if (!kind) cannot(letters[at] === "?" ? `a group (${letters.slice(at, at + 3).join("")}…)` : "a group that captures")
    const before = names, inside = alternatives(folds || kind === "?i:")
    if (!take(")")) cannot("a bracket that is not closed")
    if (kind.startsWith("?<") && names > before) cannot("a possessive quantifier in a lookbehind")
    if (kind === "?>") return atomic(inside)
    return `(${kind === "?i:" ? "?:" : kind}${inside})`
  }

  function set(folds) {
    let out = take("^") ? "[^" : "[", first = true
    while (first || letters[at] !== "]") {
      const letter = letters[at++]
      if (letter === undefined) cannot("a set that is not closed")
      if (letter === "[" && letters[at] === ":") cannot("a set of POSIX")
      if (folds && letter === "-") cannot("a range that ignores case")
      if (letter === "\\") out += escaped(folds, true)
      else if (letter === "-") out += first || letters[at] === "]" ? "\\-" : "-"
      else out += plain(letter, folds, true)
      first = false
    }
    at++
    return out + "]"
  }

  function escaped(folds, inSet) {
    const letter = letters[at++]
    if (letter === undefined) cannot("a backslash at its end")
    if (letter === "s") return "\\p{White_Space}"   // JavaScript's own \s differs in two characters
    if (letter === "S") return "\\P{White_Space}"
    if (letter === "d") return "\\p{Nd}"
    if (letter === "D") return "\\P{Nd}"
    if ("pP".includes(letter)) return property(letter, folds)
    if ("nrtfv".includes(letter)) return "\\" + letter
    const size = {x: 2, u: 4, U: 8}[letter]
    if (size) {
      const code = letters.slice(at, at + size).join("")
      if (!RegExp(`^[0-9a-fA-F]{${size}}$`).test(code) || parseInt(code, 16) > 0x10ffff) cannot(`\\${letter}${code}`)
      at += size
      if (folds) return plain(String.fromCodePoint(parseInt(code, 16)), folds, inSet)
      return `\\u{${code.replace(/^0+(?=.)/, "")}}`
    }
    if (/[a-zA-Z0-9]/.test(letter)) cannot("\\" + letter)
    return inSet && letter === "-" ? "\\-" : literal(letter)
  }

  function property(letter, folds) {
    let name = letters[at++], not = letter === "P"
    if (name === "{") {
      const end = letters.indexOf("}", at)
      name = letters.slice(at, end < 0 ? undefined : end).join("")
      at = end < 0 ? letters.length : end + 1
    }
    if (name?.startsWith("^")) { not = !not; name = name.slice(1) }
    if (folds && !/^[LMNPSZ]$/.test(name)) cannot(`the property ${name} where case is ignored`)
    for (const known of [name, `Script=${name}`]) {
      try { RegExp(`\\p{${known}}`, "u") } catch { continue }
      return `\\${not ? "P" : "p"}{${known}}`
    }
    return cannot(`the property ${name}`)
  }

  const out = alternatives(false)
  if (at < letters.length) cannot("a bracket that was not opened")
  return out
}

function splitter(pattern) {
  let finder
  try { finder = RegExp(translated(pattern), "gu") }
  catch (error) {
    if (error instanceof Refused) throw error
    refuse(`The tokenizer's pattern cannot be written in JavaScript: ${error.message.split(": ").at(-1)}.`)
  }
  return text => {
    const known = text.replaceAll("\u0295", "\u0253")   // both are lower case in Unicode 16
    const pieces = [...known.matchAll(finder)].map(found => text.slice(found.index, found.index + found[0].length))
    const left = text.length - pieces.reduce((sum, piece) => sum + piece.length, 0)
    if (left) refuse(`The tokenizer's pattern leaves out ${left} of the text's ${text.length} characters.`)
    return pieces
  }
}

// ---- The letters of tokenizer.json: a printable one for each byte

const printable = byte => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
const LETTERS = new Map(), BYTES = new Map()
for (let byte = 0, others = 256; byte < 256; byte++) {
  const letter = String.fromCharCode(printable(byte) ? byte : others++)
  LETTERS.set(byte, letter)
  BYTES.set(letter, byte)
}
const spelled = bytes => Array.from(bytes, byte => LETTERS.get(byte)).join("")

// ---- Reading the file. What would give other ids is refused.

const GPT2 = String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
const SMOLLM = String.raw`'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+`

const isObject = value => typeof value === "object" && value !== null && !Array.isArray(value)
const isNothing = value => value === null || value === false || value === 0 || value === "" || (typeof value === "object" && !Object.keys(value).length)

function knownOnly(said, known) {
  for (const [name, value] of Object.entries(said)) if (!known.includes(name) && !isNothing(value)) refuse(`This tokenizer.json uses ${name}, which this page does not support.`)
}

function patternOf(how) {
  const steps = how?.pretokenizers ?? [how ?? {}], last = steps.at(-1) ?? {}, first = steps[0] ?? {}
  const bytesByGpt2 = last.use_regex ?? true
  if (last.type === "ByteLevel" && !last.add_prefix_space) {
    if (steps.length === 1 && bytesByGpt2) return GPT2
    if (steps.length === 2 && bytesByGpt2 && first.type === "Digits" && first.individual_digits) return SMOLLM
    if (steps.length === 2 && !bytesByGpt2 && first.type === "Split" && first.behavior === "Isolated" && !first.invert && typeof first.pattern?.Regex === "string") return first.pattern.Regex
  }
  return refuse("This tokenizer.json splits text by something other than a single pattern, which this page does not support.")
}

function idsBefore(how) {
  if (isNothing(how ?? null) || how.type === "ByteLevel") return []
  if (how.type === "Sequence") return how.processors.toReversed().flatMap(idsBefore)
  if (how.type !== "TemplateProcessing") refuse(`This tokenizer.json ends texts by ${how.type}, which this page does not support.`)
  const at = how.single.findIndex(piece => piece.Sequence)
  return how.single.slice(0, at).flatMap(piece => how.special_tokens[piece.SpecialToken.id].ids)
}

class Tokenizer {
  constructor(data) {   // what a tokenizer.json says
    if (!isObject(data) || !isObject(data.model)) refuse("This is not a tokenizer.json: it has no model.")
    const model = data.model
    if ((model.type ?? "BPE") !== "BPE") refuse(`This tokenizer.json is of the kind ${model.type}; this page supports only BPE.`)
    if (!isObject(model.vocab) || !Array.isArray(model.merges)) refuse("This tokenizer.json lacks vocab or merges.")
    knownOnly(data, ["version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "truncation", "padding"])
    knownOnly(model, ["type", "vocab", "merges", "ignore_merges", "unk_token", "fuse_unk"])
    const places = new Map(Object.entries(model.vocab))
    let free = places.size
    for (const token of data.added_tokens ?? []) {
      knownOnly(token, ["id", "content", "special", "normalized", "__type"])
      if (typeof token.content !== "string" || !token.content) refuse("This tokenizer.json has a special token without a text.")
      if (data.normalizer && token.normalized) refuse(`This tokenizer.json looks for ${token.content} in rewritten text, which this page does not support.`)
      const place = places.get(token.content) ?? free   // as Hugging Face's tokenizers would have it
      if (token.id !== place) refuse(`This tokenizer.json gives the token ${token.content} the id ${token.id}, which should be ${place}.`)
      places.set(token.content, place)
      free = Math.max(free, place + 1)
    }
    const forms = data.normalizer ? data.normalizer.normalizers ?? [data.normalizer] : []
    for (const form of forms) if (form.type !== "NFC") refuse(`This tokenizer.json rewrites text first (${form.type}), which this page does not support.`)
    if ((data.decoder?.type ?? "ByteLevel") !== "ByteLevel") refuse(`This tokenizer.json decodes by ${data.decoder.type}, which this page does not support.`)

    const ids = new Map(Object.entries(model.vocab)), special = new Map((data.added_tokens ?? []).map(token => [token.content, token.id]))
    const merges = model.merges.map(pair => typeof pair === "string" ? pair.split(" ") : pair)
    this.texts = new Map()   // the bytes of each id
    const place = (id, bytes, name) => {
      if (!Number.isInteger(id) || id < 0 || id >= 2 ** 24) refuse(`This tokenizer.json gives the token ${name} the id ${id}, which is not a valid id.`)
      if (this.texts.has(id) && spelled(this.texts.get(id)) !== spelled(bytes)) refuse(`This tokenizer.json gives the id ${id} to two tokens.`)
      this.texts.set(id, bytes)
    }
    for (const [token, id] of special) place(id, new TextEncoder().encode(token), token)
    const needed = new Set([...BYTES.keys(), ...merges.flatMap(([left, right]) => [left, right, left + right])])
    for (const [token, id] of ids) {
      if (special.get(token) === id && !needed.has(token)) { ids.delete(token); continue }
      const bytes = Array.from(token, letter => BYTES.get(letter) ?? refuse(`This tokenizer.json is not byte-level: no byte is spelled ${letter}.`))
      place(id, Uint8Array.from(bytes), token)
    }
    this.ids = ids
    this.ranks = new Map()   // of each pair of ids, when it was learnt
    this.joined = merges.map(([left, right], rank) => {
      for (const part of [left, right, left + right]) if (!ids.has(part)) refuse(`Merge ${rank} of this tokenizer.json needs ${part}, which is not in its vocabulary.`)
      const key = this.key(ids.get(left), ids.get(right))
      if (!this.ranks.has(key)) this.ranks.set(key, rank)
      return ids.get(left + right)
    })
    this.pattern = patternOf(data.pre_tokenizer)
    this.cut = splitter(this.pattern)
    this.normal = forms.length > 0
    this.whole = Boolean(model.ignore_merges)
    this.fuse = Boolean(model.fuse_unk)
    this.unknown = typeof model.unk_token === "string" ? special.get(model.unk_token) ?? ids.get(model.unk_token) : undefined
    if (typeof model.unk_token === "string" && this.unknown === undefined) refuse(`This tokenizer.json lacks ${model.unk_token}, its token for unknown characters.`)
    this.before = idsBefore(data.post_processor)
    this.special = special
    const longestFirst = [...special.keys()].sort((a, b) => b.length - a.length).map(RegExp.escape ?? (token => token.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&")))
    this.specials = longestFirst.length ? RegExp(`(${longestFirst.join("|")})`, "u") : null
    this.size = Array.from(this.texts.keys()).reduce((most, id) => Math.max(most, id), -1) + 1
    this.known = new Map()
  }

  key(left, right) { return left * 2 ** 24 + right }

  firstIds(piece) {   // the bytes of a pre-token, as ids
    const ids = []
    for (const byte of new TextEncoder().encode(piece)) {
      const id = this.ids.get(LETTERS.get(byte)) ?? this.unknown
      if (id === undefined) refuse(`This tokenizer has no token for a byte of ${piece}.`)
      if (!(this.fuse && id === this.unknown && ids.at(-1) === id)) ids.push(id)
    }
    return ids
  }

  *joins(ids) {   // each step of the merging: where, and all ids after it
    while (ids.length > 1) {
      let best = Infinity, at = -1
      for (let i = 0; i + 1 < ids.length; i++) {
        const rank = this.ranks.get(this.key(ids[i], ids[i + 1]))
        if (rank < best) [best, at] = [rank, i]
      }
      if (at < 0) return
      ids = [...ids.slice(0, at), this.joined[best], ...ids.slice(at + 2)]
      yield {rank: best, at, ids}
    }
  }

  encodePiece(piece) {
    if (this.known.has(piece)) return this.known.get(piece)
    const bytes = spelled(new TextEncoder().encode(piece))
    let ids = this.whole && this.ids.has(bytes) ? [this.ids.get(bytes)] : null
    if (!ids) {
      ids = this.firstIds(piece)
      for (const step of this.joins(ids)) ids = step.ids
    }
    if (this.known.size > 20000) this.known.clear()
    this.known.set(piece, ids)
    return ids
  }

  pieces(text) {   // ordinary and special ones, in order
    if (!(text.isWellFormed?.() ?? true)) refuse("The text holds half a character.")
    const parts = this.specials ? text.split(this.specials) : [text]
    return parts.flatMap((part, i) => {
      if (i % 2) return [{text: part, ids: [this.special.get(part)]}]
      return this.cut(this.normal ? part.normalize("NFC") : part).map(piece => ({text: piece, ids: this.encodePiece(piece)}))
    })
  }

  encode(text) { return this.pieces(text).flatMap(piece => piece.ids) }

  bytes(ids) {
    const parts = ids.map(id => this.texts.get(id) ?? refuse(`The tokenizer has no token ${id}.`))
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
    let at = 0
    for (const part of parts) { all.set(part, at); at += part.length }
    return all
  }

  decode(ids) { return new TextDecoder("utf-8", {ignoreBOM: true}).decode(this.bytes(ids)) }
}

function readTokenizer(text) {
  let data
  try { data = JSON.parse(text) }
  catch { refuse("This tokenizer.json is cut short, or not JSON.") }
  try { return new Tokenizer(data) }
  catch (error) {
    if (error instanceof Refused) throw error
    return refuse("This tokenizer.json is damaged: parts of it are missing or of another kind.")
  }
}

// ---- Learning merges, as `learn_merges`: the most frequent pair first; ties go to the greater pair of byte strings

function* learnt(text, pattern = GPT2) {
  const counts = new Map()
  for (const piece of splitter(pattern)(text)) counts.set(piece, (counts.get(piece) ?? 0) + 1)
  const words = [...counts].map(([piece, count]) => ({piece, count, parts: [...spelled(new TextEncoder().encode(piece))]}))
  const order = token => Array.from(token, letter => String.fromCharCode(BYTES.get(letter))).join("")   // compare bytes, not letters
  const greater = (a, b) => a === b ? 0 : order(a) > order(b) ? 1 : -1
  yield {pair: null, count: 0, words}
  for (;;) {
    const pairs = new Map()
    for (const {parts, count} of words) for (let i = 0; i + 1 < parts.length; i++) {
      const name = parts[i] + " " + parts[i + 1]
      pairs.set(name, (pairs.get(name) ?? 0) + count)
    }
    if (!pairs.size) return
    let best = null
    for (const [name, count] of pairs) {
      const pair = name.split(" ")
      if (!best || count > best.count || (count === best.count && (greater(pair[0], best.pair[0]) || greater(pair[1], best.pair[1])) > 0)) best = {pair, count}
    }
    for (const word of words) {
      const parts = []
      for (let i = 0; i < word.parts.length; i++) {
        const joined = word.parts[i] === best.pair[0] && word.parts[i + 1] === best.pair[1]
        parts.push(joined ? best.pair.join("") : word.parts[i])
        if (joined) i++
      }
      word.parts = parts
    }
    yield {...best, words}
  }
}

const bytesOf = letters => Uint8Array.from(letters, letter => BYTES.get(letter))

globalThis.llm = {...globalThis.llm, Refused, Tokenizer, readTokenizer, translated, splitter, learnt, bytesOf, GPT2}
}
