// The page of the machine: a text, its tokens, one of them followed through every box, and the draw of the next.
{
const {make, percent, short, sizeOf, visible, spoken, strip, map, dials, colour, bars, choice, samplers, lot} = llm
const ROOM = 256          // tokens that the page reads at most
const LONGEST = 20000     // characters that the page cuts at most
const EXAMPLES = ["ROMEO: What is", "Shall I compare thee to a summer's day?", "To be, or not to be, that is the question:", "HAMLET:\nMy lord, my lord"]
const CHAPTERS = {"01": "bpe", "02": "bpe_tokenizer", "03": "data", "04": "linear", "05": "embedding", "06": "rmsnorm", "07": "ffn", "08": "softmax", "09": "attention", "10": "rope", "11": "multihead", "12": "loss", "13": "optim", "14": "schedule", "15": "transformer", "16": "checkpoint", "17": "training", "18": "generating", "19": "health"}

const at = id => document.getElementById(id)
const state = {tokenizer: null, machine: null, ids: [], pieces: [], position: 0, block: 0, head: 0, off: new Set(), how: {temperature: 0.8, top_k: 0, top_p: 0.9, min_p: 0}, step: 300, seen: null, drawn: null, allOn: null, writing: false, shown: 0, filled: 0}

const told = words => { at("told").textContent = words }
const failed = error => { state.writing = false; told(error instanceof llm.Refused ? error.message : `Something went wrong: ${error.message}.`) }
const chapter = number => make("a", {class: "chapter", href: `../nbs/${CHAPTERS[number]}.html`}, `chapter ${number}`)
const token = id => visible(state.tokenizer.texts.get(id) ?? new Uint8Array())
const quoted = id => make("span", {class: "token"}, token(id))

// ---- The text

const typed = make("textarea", {id: "typed", rows: 2, spellcheck: "false", autocapitalize: "off", autocomplete: "off", oninput: () => read(typed.value)})
const tokens = make("div", {class: "tokens", role: "group", "aria-label": "Tokens of the text; choose one to follow"})
const counted = make("p", {class: "faint"})
const write = make("button", {type: "button", onclick: () => state.writing ? halt() : writeOn()}, "Write on")

function buildText() {
  at("text").append(
    make("h2", {id: "text-title"}, "A text, in tokens"),
    make("label", {for: "typed"}, "Type anything"), typed,
    make("div", {class: "buttons"}, EXAMPLES.map(text => make("button", {type: "button", class: "quiet", onclick: () => { typed.value = text; read(text) }}, text.replace("\n", " ").slice(0, 22) + (text.length > 22 ? "…" : "")))),
    tokens, counted)
  tokens.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key]
    if (!step || !(state.ids[state.position + step] >= 0)) return
    event.preventDefault()
    choose(state.position + step)
  })
}

function read(text) {
  stop()
  try {
    if (text.length > LONGEST) throw new llm.Refused(`This page cuts texts of up to ${LONGEST} characters.`)
    const found = state.tokenizer.pieces(text), start = state.tokenizer.before
    state.ids = [...start, ...found.flatMap(piece => piece.ids)]
    state.pieces = [...start.map(() => null), ...found.flatMap(piece => piece.ids.map(() => piece.text))]
    if (!state.ids.length) {   // a text begins behind the token that ends the one before it
      const first = state.tokenizer.special.get("<|endoftext|>") ?? 0
      state.ids = [first]
      state.pieces = [null]
    }
    told("")
    makeRoom()
    state.drawn = null
    state.position = state.ids.length - 1
    refresh()
  } catch (error) { failed(error) }
}

function makeRoom() {
  const room = Math.min(ROOM, state.machine.config.max_seq_len)
  if (state.ids.length <= room) return
  const dropped = state.ids.length - Math.max(1, Math.floor(room / 2))
  state.ids = state.ids.slice(dropped)
  state.pieces = state.pieces.slice(dropped)
  told(`There is room for ${room} tokens, so the first ${dropped} were dropped.`)
}

function choose(position) {
  state.position = position
  refresh()
}

function showTokens() {
  const held = tokens.contains(document.activeElement)
  tokens.replaceChildren(...state.ids.map((id, i) => make("button", {
    type: "button", class: `chip ${colour(i)}`, "aria-pressed": String(i === state.position), tabindex: i === state.position ? 0 : -1,
    "aria-label": `${spoken(token(id))}, id ${id}`, onclick: () => choose(i),
  }, make("span", {class: "token"}, token(id)), make("small", {}, String(id)))))
  if (held) tokens.children[state.position]?.focus()
  counted.textContent = `${state.ids.length} token${state.ids.length === 1 ? "" : "s"}. Choose one with the mouse, or with ← and →. A dot is a space.`
}

// ---- The next token

const dialled = () => llm.nextProbabilities(state.seen.logits, state.how)
const nextBody = make("div"), drawnBody = make("div", {class: "drawn"}), nextAbout = make("p", {class: "faint"})

function buildNext() {
  at("next").append(
    make("h2", {id: "next-title"}, "What comes next ", chapter("18")), nextAbout, nextBody,
    make("div", {class: "sliders"}, samplers(state.how, ["temperature", "top_k", "top_p", "min_p"], () => { state.drawn = null; showNext() })), drawnBody,
    make("div", {class: "buttons"}, make("button", {type: "button", class: "main", onclick: () => drawOne().catch(failed)}, "Draw the next token"), write,
      make("button", {type: "button", onclick: back}, "Take one back")))
}

function showNext() {
  if (!state.seen) return
  const shares = dialled(), plain = llm.softmax(state.seen.logits), compared = state.off.size && state.allOn ? llm.nextProbabilities(state.allOn, state.how) : plain
  const last = state.position === state.ids.length - 1, follows = state.ids[state.position + 1]
  const shown = llm.best(plain, 10), kept = shares.reduce((n, share) => n + (share > 0), 0)
  nextAbout.replaceChildren("After ", quoted(state.ids[state.position]), last ? "." : ", which ", ...(last ? [] : ["the text continues with ", quoted(follows), ` (${percent(plain[follows])}).`]))
  at("brief").replaceChildren("next: ", ...shown.slice(0, 3).map(({id}) => make("span", {}, quoted(id), ` ${percent(shares[id])}`)))
  nextBody.replaceChildren(
    bars(shown.map(({id}) => ({label: token(id), share: shares[id], was: compared[id], ...llm.cut(shares[id])}))),
    make("p", {class: "faint"}, `Filled: the shares to draw from, ${kept} of ${shares.length.toLocaleString("en")} tokens. Outlined: ${state.off.size && state.allOn ? "with all heads on." : "what the model says, at temperature 1 and uncut."}`))
  const drawn = state.drawn
  drawnBody.setAttribute("aria-live", state.writing ? "off" : "polite")   // what was drawn is read out, but not two hundred times
  drawnBody.replaceChildren(
    lot(drawn?.shares ?? shares, drawn?.chance ?? null, "The shares, side by side on a line from 0 to 1"),
    make("p", {class: "faint"}, ...(drawn ? [`${drawn.chance.toFixed(3)} was drawn, which falls on `, quoted(drawn.id), ` (${percent(drawn.shares[drawn.id])}).`] : ["All shares on one line from 0 to 1. To draw is to pick a point of it."])))
}

async function drawOne() {
  if (state.position !== state.ids.length - 1) { state.position = state.ids.length - 1; await refresh() }
  const shares = dialled(), chance = Math.random(), id = llm.draw(shares, chance)
  state.ids = [...state.ids, id]
  state.pieces = [...state.pieces, null]
  makeRoom()
  state.position = state.ids.length - 1
  state.drawn = {shares, chance, id}
  if (!state.writing) writeDown()
  await refresh()
}

function back() {
  stop()
  if (state.ids.length < 2) return
  state.ids = state.ids.slice(0, -1)
  state.pieces = state.pieces.slice(0, -1)
  state.position = state.ids.length - 1
  state.drawn = null
  writeDown()
  refresh()
}

function writeDown() { typed.value = state.tokenizer.decode(state.ids) }

function halt() {
  stop()
  writeDown()
}

function stop() { state.writing = false; write.textContent = "Write on" }

async function writeOn() {
  state.writing = true
  write.textContent = "Stop"
  try {
    for (let n = 0; n < 200 && state.writing; n++) await drawOne()
    if (state.writing) halt()
  } catch (error) { failed(error) }
  stop()
  refresh()
}

// ---- The boxes. Each has a place for what is alive in it, which is filled anew whenever the text or the token changes.

const places = {}
function box(id, title, number, told, kind = "") {
  places[id] = make("div", {class: "live"})
  return make("section", {id, class: `box ${kind}`, tabindex: -1, "aria-labelledby": `${id}-title`}, make("h3", {id: `${id}-title`}, title, " ", chapter(number)), make("p", {}, ...[told].flat()), places[id])
}
function stream(id) {   // where a branch is added to the stream
  places[id] = make("div", {class: "live"})
  return make("div", {id, class: "sum"}, places[id])
}

function buildFlow() {
  const {config} = state.machine, names = n => Array.from({length: n}, (_, i) => String(i + 1))
  const blocks = choice("Block", names(config.num_layers), state.block, i => { state.block = i; refresh() })
  const heads = choice("Head", names(config.num_heads), state.head, i => { state.head = i; showFlow() })
  const switches = make("div", {class: "heads"}, names(config.num_heads).map((name, head) => make("div", {class: "head"},
    make("button", {type: "button", class: "face", "aria-label": `Look into head ${name}`, onclick: () => { state.head = head; heads.querySelectorAll("input")[head].checked = true; showFlow() }}),
    make("label", {}, make("input", {type: "checkbox", checked: true, onchange: event => switchHead(head, event.target.checked)}), `head ${name}`))))
  at("flow").replaceChildren(
    make("h2", {}, "Inside, for one token"),
    make("p", {}, "The blue line is the residual stream: one vector, which every box reads, and to which only the branches add. Blue cells are above zero, red ones below; point at a cell to see its number."),
    make("div", {class: "spine"}, box("tokenizer", "Tokenizer", "02", "A text is cut into pieces, and in each piece the neighbours that were learnt first are joined, until no known pair is left."),
    box("pairs", "Byte pairs", "01", "The merges were learnt from a text, the most frequent pair of neighbours first. These made the tokens of this piece; each has the number by which it was learnt."),
    box("embedding", "Embedding", "05", "The id is a row of a table. That row is the vector with which the stream begins."),
    make("div", {id: "block", class: "block", role: "group", "aria-label": "One block"},
      make("div", {class: "which"}, make("h3", {}, "Block ", chapter("15")), blocks, make("p", {class: "faint"}, config.num_layers === 1 ? "There is one." : `There are ${config.num_layers}, one after the other, each with weights of its own.`)),
      box("norm1", "First norm", "06", "The branch reads the stream at size one, times a learned gain."),
      box("heads", "Multi-head attention", "11", "Each head asks a question of its own. Its picture shows who looks at whom: a row for each token, and in it the tokens before. Switch a head off, and see what changes in the next token."),
      make("div", {class: "inner"}, make("p", {class: "which"}, heads),
        box("linear", "Query, key, value", "04", "Three matrices turn the vector into what the token asks, what it answers to, and what it says."),
        box("rope", "Positions by turning", "10", "Each pair of features turns by an angle that grows with the position. Grey is the query before, blue after; the first pairs turn fast, the last ones hardly."),
        box("attention", "Scores and shares", "09", ["The query meets the key of every token so far. Softmax (", chapter("08"), ") turns the scores into shares, and the values are averaged by them."])),
      stream("sum1"),
      box("norm2", "Second norm", "06", "The second branch reads the stream at size one, too."),
      box("ffn", "Feed-forward", "07", ["Three matrices (", chapter("04"), "), again: two widen the vector. One half, bent by SiLU, is a gate that decides how much of the other half passes; the product is narrowed by the third."]),
      stream("sum2")),
    box("lens", "What the stream says at each depth", "15", "If we read the stream early, with the last norm and the head, it already says something. This is known as the logit lens.", "aside"),
    box("norm3", "Last norm", "06", "Once more the stream is brought to size one."),
    box("head", "Head", "04", "Every token of the vocabulary has a row here. Its product with the vector is the token's logit."),
    box("softmax", "Softmax, and the draw", "08", "The logits become shares that add up to one, and one token is drawn by them.")),
    make("div", {id: "training", class: "block grey", role: "group", "aria-label": "One step of training"},
      make("div", {class: "which"}, make("h3", {}, "One step of training ", chapter("17")), make("p", {class: "faint"}, "A text is its own exercise. Here is what a step would do to the head, from these tokens alone; then it is forgotten.")),
      box("data", "Data", "03", "The ids are there twice: what is read, and, one place on, what should be said."),
      box("loss", "Loss", "12", "Each target costs minus the logarithm of its share, in nats. Outlined: what it would cost after the step."),
      box("clip", "Gradient, clipped", "13", "The loss pulls at every row of the head. If all pulls together are longer than one, they are shortened."),
      box("schedule", "Schedule", "14", "The learning rate climbs at first, then comes down on half a cosine."),
      box("adamw", "AdamW", "13", "Each weight moves by about the learning rate, however small its gradient."),
      box("health", "Health", "19", "How far do the weights move, beside their own size? A run in which that is large is soon in trouble."),
      box("checkpoint", "Checkpoint", "16", "What is kept of all the steps: the tensors of the model's file.")))
  at("schedule").append(llm.slider("step", {min: 0, max: 1000, step: 10, value: state.step}, value => { state.step = value; refresh() }))
  places.heads.append(places.switches = switches)
  for (const id of ["tokenizer", "embedding", "norm1", "heads", "norm2", "ffn", "norm3", "head", "softmax"]) at(id).classList.add("onstream")
}

function switchHead(head, on) {
  const name = state.block * state.machine.config.num_heads + head
  if (!state.off.size) state.allOn = state.seen.logits
  if (on) state.off.delete(name)
  else state.off.add(name)
  state.drawn = null
  refresh()
}

const words = {
  tokenizer() {
    const piece = state.pieces[state.position], id = state.ids[state.position], found = piece === null ? null : state.tokenizer
    if (!found) return [make("p", {}, "This token was put here whole: ", quoted(id), ` is number ${id}.`)]
    if (state.tokenizer.special.has(piece)) return [make("p", {}, "A special token stands for itself: ", quoted(id), ` is number ${id}.`)]
    const first = found.firstIds(piece), row = ids => make("li", {}, ids.map((part, i) => make("span", {class: `token piece ${colour(i)}`}, token(part))))
    const steps = [...found.joins(first)], most = 9
    const rows = [row(first), ...steps.slice(0, most).map(step => row(step.ids))]
    if (steps.length > most) rows.push(make("li", {}, `… and ${steps.length - most} more`))
    return [make("p", {}, "The piece ", make("span", {class: "token"}, visible(new TextEncoder().encode(piece))), ` begins as ${first.length} byte${first.length === 1 ? "" : "s"}, and ${steps.length} merge${steps.length === 1 ? "" : "s"} later it is ${found.encodePiece(piece).length === 1 ? "one token" : `${found.encodePiece(piece).length} tokens`}.`), make("ol", {class: "steps"}, rows)]
  },
  pairs() {
    const piece = state.pieces[state.position]
    if (piece === null || state.tokenizer.special.has(piece)) return [make("p", {}, "None: the token was put here whole.")]
    let before = state.tokenizer.firstIds(piece)
    const rows = [...state.tokenizer.joins(before)].map(({rank, at, ids}) => {
      const row = make("li", {}, quoted(before[at]), " and ", quoted(before[at + 1]), ` are merge ${rank + 1}.`)
      before = ids
      return row
    })
    if (!rows.length) return [make("p", {}, "None: no pair of its bytes is known.")]
    return [make("ol", {class: "steps"}, rows.slice(0, 9), rows.length > 9 ? make("li", {}, `… and ${rows.length - 9} more`) : null)]
  },
  embedding: seen => [strip(seen.embedding, `Row ${state.ids[state.position]} of the table`), make("p", {class: "faint"}, `Row ${state.ids[state.position]} of ${state.machine.config.vocab_size.toLocaleString("en")}, at position ${state.position}.`)],
  norm1: (_, block) => [strip(block.normed, "The stream at size one"), make("p", {class: "faint"}, `The stream has size ${short(sizeOf(block.before))}; what the branch reads has ${short(sizeOf(block.normed))}.`)],
  linear(_, block) {
    const {config} = state.machine, d = config.d_k, group = config.num_heads / config.num_kv_heads, own = state.head * d, shared = Math.floor(state.head / group) * d
    return [["query", block.q, own], ["key", block.k, shared], ["value", block.v, shared]].map(([name, x, from]) => make("div", {class: "named"}, make("span", {}, name), strip(x.slice(from, from + d), `The ${name} of head ${state.head + 1}`)))
      .concat(group > 1 ? [make("p", {class: "faint"}, `Each key and value serves ${group} heads.`)] : [])
  },
  rope(_, block) {
    const {config} = state.machine, d = config.d_k, from = state.head * d, angles = Array.from(llm.frequencies(config), frequency => state.position * frequency)
    return [dials(block.q.slice(from, from + d), block.turned.slice(from, from + d), angles.slice(0, 32), `The ${d / 2} pairs of the query, before and after turning to position ${state.position}`),
      make("p", {class: "faint"}, `At position ${state.position} the first pair has turned by ${short(angles[0])} radians, the last by ${angles.at(-1).toPrecision(2)}.`)]
  },
  attention(seen, block) {
    const share = block.shares[state.head], score = block.scores[state.head], off = state.off.has(state.block * state.machine.config.num_heads + state.head)
    const most = share.reduce((a, b) => Math.max(a, b))   // the darkest is the largest share
    const row = make("p", {class: "looks"}, Array.from(share, (part, s) => make("span", {class: "token look", vars: {share: part / most}, title: `score ${short(score[s])}, share ${percent(part)}`}, token(state.ids[s]))))
    const best = Array.from(share.keys()).sort((a, b) => share[b] - share[a] || a - b).slice(0, 6)
    return [row, bars(best.map(s => ({label: token(state.ids[s]), share: share[s]}))),
      make("p", {class: "faint"}, `Of head ${state.head + 1}: the tokens that this one takes most from. The scores run from ${short(Math.min(...score))} to ${short(Math.max(...score))}.`),
      off ? make("p", {}, "This head is off: its answer is zero.") : strip(block.mixed.slice(state.head * state.machine.config.d_k, (state.head + 1) * state.machine.config.d_k), "The average of the values")]
  },
  sum1: (seen, block) => added(seen, block.found, block.middle, 1 + 2 * state.block, "Attention"),
  norm2: (_, block) => [strip(block.normed2, "The stream at size one"), make("p", {class: "faint"}, `From size ${short(sizeOf(block.middle))} to ${short(sizeOf(block.normed2))}.`)],
  ffn(_, block) {
    const open = block.gate.reduce((n, gate) => n + (gate > 0.1), 0)
    return [["gate", block.gate], ["value", block.value], ["product", block.passed]].map(([name, x]) => make("div", {class: "named"}, make("span", {}, name), strip(x, `The ${name}`, "hidden feature")))
      .concat(make("p", {class: "faint"}, `${open} of ${block.gate.length} gates are open by more than 0.1.`))
  },
  sum2: (seen, block) => added(seen, block.thought, block.out, 2 + 2 * state.block, "Feed-forward"),
  lens(seen) {
    const depth = i => i === 0 ? "embedding" : `block ${Math.ceil(i / 2)}, ${i % 2 ? "attention" : "feed-forward"}`
    return [make("table", {}, make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "after"), make("th", {scope: "col"}, "it would say"))),
      make("tbody", {}, seen.lens.map((best, i) => make("tr", {}, make("th", {scope: "row"}, depth(i)), make("td", {}, best.map(({id, share}) => make("span", {class: "said", vars: {share}}, quoted(id), ` ${percent(share)} `)))))))]
  },
  norm3: seen => [strip(seen.normed, "The stream at size one")],
  head(seen) {
    const best = llm.best(seen.logits, 6), top = seen.logits[best[0].id], least = seen.logits.reduce((a, b) => Math.min(a, b))
    return [bars(best.map(({id}) => ({label: token(id), share: (seen.logits[id] - least) / (top - least), note: short(seen.logits[id])}))), make("p", {class: "faint"}, `The highest of ${seen.logits.length.toLocaleString("en")} logits; the lowest is ${short(least)}.`)]
  },
  softmax: seen => [bars(llm.best(llm.softmax(seen.logits), 4).map(({id, share}) => ({label: token(id), share}))), make("p", {}, make("a", {href: "#next"}, "The dials, and the draw"))],
  data: ({learnt}) => learnt ? [make("ol", {class: "steps pairs"}, lately(learnt).map(i => make("li", {}, quoted(state.ids[learnt.start + i]), " → ", quoted(learnt.targets[i])))), make("p", {class: "faint"}, `The last of ${learnt.targets.length} pairs.`)] : TOO_SHORT(),
  loss({learnt}) {
    if (!learnt) return TOO_SHORT()
    const mean = x => x.reduce((a, b) => a + b, 0) / x.length
    return [bars(lately(learnt).map(i => ({label: token(learnt.targets[i]), share: learnt.losses[i], was: learnt.after[i], note: short(learnt.losses[i])}))),
      make("p", {class: "faint"}, `The mean is ${short(mean(learnt.losses))} nats, and ${short(mean(learnt.after))} after the step. To find all tokens alike would cost ${short(Math.log(state.machine.config.vocab_size))}.`)]
  },
  clip: ({learnt}) => learnt ? [strip(learnt.gradient, "The gradient of one row"), make("p", {class: "faint"}, "The row of ", quoted(learnt.shown), `. All rows together are ${short(learnt.norm)} long, so they are multiplied by ${short(learnt.factor)}.`)] : TOO_SHORT(),
  schedule() {
    const x = step => 10 + 380 * step / 1000, y = step => 108 - 9400 * llm.rateAt(step), rate = llm.rateAt(state.step)
    return [make("svg:svg", {class: "curve", viewBox: "0 0 400 120", role: "img", "aria-label": "The learning rate of each step; a dot marks where you are"}, make("svg:path", {d: "M10 108H390M10 8V108", class: "axis"}),
      make("svg:path", {d: Array.from({length: 101}, (_, i) => `${i ? "L" : "M"}${x(10 * i)} ${y(10 * i).toFixed(1)}`).join(""), class: "line"}), make("svg:circle", {cx: x(state.step), cy: y(state.step), r: 5})),
      make("p", {class: "faint"}, `At step ${state.step} of 1,000 the learning rate is ${rate.toPrecision(2)}.`)]
  },
  adamw: ({learnt}) => learnt ? [strip(learnt.change, "The step of one row"), make("p", {class: "faint"}, "How the row of ", quoted(learnt.shown), " would move.")] : TOO_SHORT(),
  health: ({learnt}) => learnt ? [make("p", {}, `The head moves by ${percent(learnt.ratio)} of its size.`)] : TOO_SHORT(),
  checkpoint() {
    const seen = state.machine.tensors.filter(({name}) => !name.startsWith("blocks.") || name.startsWith(`blocks.${state.block}.`))
    return [make("table", {}, make("thead", {}, make("tr", {}, ["tensor", "shape", "size"].map(head => make("th", {scope: "col"}, head)))),
      make("tbody", {}, seen.map(({name, shape, size}) => make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, shape.join(" × ")), make("td", {}, short(size)))))),
      make("p", {class: "faint"}, `All that lies outside the blocks, and block ${state.block + 1}; ${state.machine.count.toLocaleString("en")} numbers in all. Size is the root mean square.`)]
  },
}
const TOO_SHORT = () => [make("p", {}, "That takes a text of two tokens.")]
const lately = learnt => Array.from(learnt.targets.keys()).slice(-8)

function added(seen, branch, after, depth, name) {
  const [first] = seen.lens[depth]
  return [make("div", {class: "named"}, make("span", {}, "adds"), strip(branch, `What ${name} adds`)), make("div", {class: "named"}, make("span", {}, "stream"), strip(after, "The stream after it")),
    make("p", {class: "faint"}, `${name} adds a vector of size ${short(sizeOf(branch))}; the stream then has ${short(sizeOf(after))}. Read here, it would say `, quoted(first.id), ` (${percent(first.share)}).`)]
}

function showFlow() {
  if (!state.seen?.maps) return   // it is being written
  const {seen} = state, {config} = state.machine, block = seen.blocks[state.block]
  for (const [id, fill] of Object.entries(words)) places[id].replaceChildren(...fill(seen, block))
  for (const [head, face] of [...places.switches.children].entries()) {
    const rows = seen.maps[head], name = state.block * config.num_heads + head
    face.classList.toggle("off", state.off.has(name))
    face.classList.toggle("chosen", head === state.head)
    face.querySelector("input").checked = !state.off.has(name)
    face.querySelector("button").setAttribute("aria-pressed", String(head === state.head))
    face.querySelector("button").replaceChildren(map(rows, `Head ${head + 1}: who looks at whom`, (row, column) => `${token(state.ids[row])} looks at ${token(state.ids[column])}: ${percent(rows[row][column])}`, state.position))
  }
}

// ---- The plan: the front page's drawing, with what the stream would say beside it

const BOXES = [   // where it leads, what it says, its chapter, and its place
  ["tokenizer", "tokenizer", "02", 68, 34, 88], ["pairs", "byte pairs", "01", 160, 34, 88, "grey"], ["embedding", "embedding", "05", 68, 84, 156],
  ["norm1", "norm", "06", 68, 158, 156], ["heads", "multi-head attention", "11", 68, 196, 156],
  ["linear", "linear", "04", 92, 234, 118, "inner"], ["rope", "RoPE", "10", 92, 262, 118, "inner"], ["attention", "attention", "09", 92, 290, 118, "inner"], ["attention", "softmax", "08", 92, 318, 118, "inner"],
  ["norm2", "norm", "06", 68, 390, 156], ["ffn", "feed-forward", "07", 68, 428, 156],
  ["norm3", "norm", "06", 68, 526, 156], ["head", "head: linear", "04", 68, 564, 156], ["softmax", "softmax", "08", 68, 602, 156], ["next", "sampling", "18", 68, 640, 156],
  ["data", "data", "03", 34, 732, 92, "grey"], ["loss", "loss", "12", 134, 732, 92, "grey"], ["clip", "clip", "13", 34, 766, 92, "grey"], ["schedule", "schedule", "14", 134, 766, 92, "grey"],
  ["adamw", "AdamW", "13", 34, 800, 92, "grey"], ["health", "health", "19", 134, 800, 92, "grey"], ["checkpoint", "checkpoint", "16", 34, 834, 192, "grey"]]
const FRAMES = [["lens", "Transformer", "15", 20, 74, 224, 523, 514], ["block", "block, N times", "15", 26, 132, 208, 362, 147], ["training", "training", "17", 26, 706, 208, 164, 721]]   // and where its name stands
const SPOTS = [[110, 0], [352, 1], [464, 2]]   // where the stream can be read, and what came just before

function buildPlan() {
  const path = (d, kind) => make("svg:path", {d, class: kind})
  const link = (id, label, number, kind, x, y, anchor) => make("svg:a", {href: `#${id}`, class: kind}, make("svg:text", {x, y, "text-anchor": anchor}, label + " ", make("svg:tspan", {}, number)))
  const frames = FRAMES.map(([id, label, number, x, y, width, height, foot]) => [make("svg:rect", {x, y, width, height, rx: 8, class: "frame"}), link(id, label, number, "small", x + width - 6, foot, "end")])
  const boxes = BOXES.map(([id, label, number, x, y, width, kind]) => {
    const inner = kind === "inner", box = link(id, label, number, kind, x + width / 2, y + (inner ? 15.5 : 19), "middle")
    box.prepend(make("svg:rect", {x, y, width, height: inner ? 22 : 28, rx: 5}))
    return box
  })
  const branch = (y1, y2) => [path(`M40 ${y1}H68`, "line"), path(`M146 ${y2}H52`, "line"), make("svg:circle", {cx: 40, cy: y2, r: 7.5, class: "plus"}), path(`M36 ${y2}h8M40 ${y2 - 4}v8`, "line")]
  places.plan = SPOTS.map(([y]) => make("svg:text", {x: 62, y: y + 14, class: "lens"}))
  at("plan").append(make("svg:svg", {viewBox: "0 0 250 876", role: "group", "aria-label": "The machine, each box a link to what happens in it"}, frames.flat(),
    path("M146 8V34M146 62V84M68 98H40V540H68", "line"), path("M40 98V540", "stream"), path("M146 554V564M146 592V602M146 630V640M146 668V680M68 654H12V20H146", "line"),
    branch(172, 354), path("M146 186V196M146 224V354", "line"), branch(404, 468), path("M146 418V428M146 456V468", "line"),
    make("svg:rect", {x: 80, y: 226, width: 142, height: 120, rx: 5, class: "frame"}), boxes, places.plan,
    make("svg:text", {x: 152, y: 14, class: "small"}, "text"), make("svg:text", {x: 152, y: 684, class: "small"}, "next token"), make("svg:text", {transform: "translate(8 330) rotate(-90)", "text-anchor": "middle", class: "small"}, "append the id, and ask again")))
}

function showPlan() {
  for (const [i, [, step]] of SPOTS.entries()) {
    const [best] = state.seen.lens[step ? 2 * state.block + step : 0]
    places.plan[i].textContent = `says ${token(best.id)} ${percent(best.share)}`
  }
}

// ---- A model of the reader's own

const files = {}
function buildOwn() {
  const input = make("input", {type: "file", id: "files", multiple: true, accept: ".safetensors,.json", onchange: () => take([...input.files])})
  at("own").append(make("h2", {id: "own-title"}, "Your own model"),
    make("p", {}, "Drop a ", make("code", {}, "model.safetensors"), " and a ", make("code", {}, "tokenizer.json"), " anywhere on this page: any ", make("code", {}, "Transformer"), " of the course, with grouped queries, ties, biases or norms of queries and keys, up to ", `${llm.LARGEST / 2 ** 20} MB. `,
      make("code", {}, "python -m llm_course.checkpoint"), " writes the first from a run of yours, and the run has the second. They stay in this tab: the page is forbidden to send anything."),
    make("label", {for: "files"}, "Choose both files"), input)
  const over = is => at("own").classList.toggle("over", is)
  addEventListener("dragover", event => { event.preventDefault(); over(true) })
  addEventListener("dragleave", () => over(false))
  addEventListener("drop", event => { event.preventDefault(); over(false); take([...event.dataTransfer.files]) })
}

async function take(given) {
  try {
    for (const file of given) {
      if (/\.json$/i.test(file.name)) files.tokenizer = llm.readTokenizer(await file.text())
      else if (/\.safetensors$/i.test(file.name)) {
        if (file.size > llm.LARGEST) throw new llm.Refused(`This model is larger than the ${llm.LARGEST / 2 ** 20} MB that this page takes.`)
        const machine = new llm.Machine(), buffer = await file.arrayBuffer()
        try { Object.assign(machine, await machine.ask("load", {buffer}, [buffer])) }
        catch (error) { machine.end(); throw error }
        files.machine?.end()
        files.machine = machine
      } else throw new llm.Refused(`${file.name} is neither a .safetensors file nor a tokenizer.json.`)
    }
    if (!files.machine || !files.tokenizer) { told(files.machine ? "The model is read; now its tokenizer.json." : "The tokenizer is read; now its model.safetensors."); return }
    const {machine, tokenizer} = files
    if (tokenizer.size > machine.config.vocab_size) throw new llm.Refused(`The tokenizer has ${tokenizer.size} ids, but the model knows ${machine.config.vocab_size} of them; they do not belong together.`)
    delete files.machine
    delete files.tokenizer
    state.machine.end()
    begin(tokenizer, machine)
    const c = machine.config
    told(`Your model runs: ${machine.count.toLocaleString("en")} numbers in ${c.num_layers} blocks of ${c.num_heads} heads.`)
  } catch (error) { failed(error) }
}

// ---- Everything

const refresh = llm.latest(async () => {
  const {machine, ids, position, block} = state, now = performance.now()
  const show = !state.writing || now - state.shown > 80, all = !state.writing || now - state.filled > 1000   // while it writes, the page follows more slowly, and the boxes still more
  try {
    const seen = await machine.ask("read", {ids, off: [...state.off], position, block, all, rate: llm.rateAt(state.step)})
    if (machine !== state.machine) return
    if (!state.off.size) state.allOn = null
    state.seen = seen
    if (show) {
      if (state.writing) writeDown()
      showTokens()
      showNext()
      state.shown = now
    }
    if (all) {
      showFlow()
      showPlan()
      state.filled = now
    }
    document.body.dataset.read = ids.length   // tests wait for it
  } catch (error) { if (machine === state.machine) failed(error) }
})

function begin(tokenizer, machine) {
  Object.assign(state, {tokenizer, machine, block: 0, head: 0, off: new Set(), allOn: null, seen: null})
  buildFlow()
  read(typed.value)
}

async function start() {
  buildText()
  buildNext()
  buildPlan()
  buildOwn()
  typed.value = EXAMPLES[0]
  told("The demo model is being loaded.")
  const [tokenizer, machine] = await Promise.all([llm.demoTokenizer(""), llm.demoMachine("")])
  begin(tokenizer, machine)
}
start().catch(failed)
}
