// The figures of the chapters, alive. A page says where one belongs by <div data-figure="name">; without this script the picture above it stands alone.
{
const folder = document.currentScript.src.replace(/[^/]*$/, "")

const FIGURES = {merges, temperature, looks, turning, cuts}

async function start() {
  document.head.append(Object.assign(document.createElement("link"), {rel: "stylesheet", href: `${folder}parts.css`}))
  for (const name of ["tokenizer", "model", "parts"]) await new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"), {src: `${folder}${name}.js`, onload: done, onerror: failed})))
  for (const place of document.querySelectorAll("[data-figure]")) {
    const [title, parts, wake] = FIGURES[place.dataset.figure]()
    const told = llm.make("p", {role: "status", class: "faint"}), body = llm.make("div", {hidden: Boolean(wake)}, parts)
    const failed = error => { told.textContent = error instanceof llm.Refused ? error.message : `Something went wrong: ${error.message}.` }
    place.replaceChildren(llm.make("div", {class: "alive try", role: "group", "aria-label": title}, llm.make("p", {class: "title"}, title), wake && starter(wake, body, told, failed), body, told))
  }
}

const SIZE = "1.7 MB"   // of the demo model and its tokenizer, as a server sends them

function starter(wake, body, told, failed) {   // a figure that needs the demo model fetches it when the reader presses this button
  const button = llm.make("button", {type: "button", class: "main", onclick: async () => {
    button.disabled = true
    told.textContent = "The demo model is being loaded."
    try {
      await wake(failed)
      told.textContent = ""
      body.hidden = false
      row.remove()
      body.querySelector("textarea").focus()   // the keyboard goes on where the button was
    } catch (error) {
      button.disabled = false   // for another try
      failed(error)
    }
  }}, `Load the demo model (${SIZE})`)
  const row = llm.make("div", {class: "buttons"}, button)
  return row
}

const wakeDemo = () => Promise.all([llm.demoTokenizer(folder), llm.demoMachine(folder)])
const machineLink = () => llm.make("p", {class: "faint"}, "The whole machine runs ", llm.make("a", {href: `${folder}index.html`}, "on a page of its own"), ".")

// ---- 01: merges, as one types

function merges() {
  const {make, colour, visible} = llm
  const typed = make("textarea", {rows: 2, spellcheck: "false", "aria-label": "A text to learn merges from", oninput: () => learn()})
  typed.value = "the cat sat on the mat, and the rat sat on the cat that sat on the mat"
  const shown = make("p", {class: "looks"}), said = make("p", {class: "faint"}), place = make("div")
  let steps = [], count = 9
  const letters = token => visible(llm.bytesOf(token))

  function learn() {   // what was joined at each step, and the pieces after it
    steps = []
    for (const {pair, count, words} of llm.learnt(typed.value.slice(0, 600))) {
      steps.push({pair, count, split: new Map(words.map(word => [word.piece, word.parts]))})
      if (steps.length > 80) break
    }
    count = Math.min(count, steps.length - 1)
    place.replaceChildren(llm.slider("merges", {min: 0, max: steps.length - 1, step: 1, value: count}, value => { count = value; show() }))
    show()
  }
  function show() {
    const {pair, split, count: times} = steps[count], names = new Map()
    const pieces = llm.splitter(llm.GPT2)(typed.value.slice(0, 600))
    const tokens = pieces.flatMap(piece => split.get(piece))
    for (const token of tokens) if (!names.has(token)) names.set(token, names.size)
    shown.replaceChildren(...tokens.map(token => make("span", {class: `token piece ${colour(names.get(token))}`}, letters(token))))
    const what = pair ? [`Merge ${count} joins `, make("span", {class: "token"}, letters(pair[0])), " and ", make("span", {class: "token"}, letters(pair[1])), `, which stand side by side ${times} time${times === 1 ? "" : "s"}. `] : ["Before the first merge each byte is a token. "]
    said.replaceChildren(...what, `${tokens.length} tokens, of which ${names.size} are distinct.`)
  }
  learn()
  return ["Try it: learn merges from a text of your own", [typed, place, shown, said]]
}

// ---- 08: temperature

function temperature() {
  const words = ["mat", "sofa", "floor", "moon", "of"], scores = [3, 2.2, 1.6, 0.2, -1], place = llm.make("div")
  let heat = 1
  function show() {
    const shares = llm.softmax(scores.map(score => score / heat)), plain = llm.softmax(scores)
    const entropy = -shares.reduce((sum, share) => sum + (share > 0 ? share * Math.log(share) : 0), 0)
    place.replaceChildren(llm.bars(words.map((label, i) => ({label, share: shares[i], was: plain[i]}))),
      llm.make("p", {class: "faint"}, `Outlined: the shares at temperature 1. The entropy is ${entropy.toFixed(2)} nats, as if ${Math.exp(entropy).toFixed(1)} words were equally likely.`))
  }
  show()
  const dials = words.map((word, i) => llm.slider(word, {min: -5, max: 5, step: 0.1, value: scores[i], say: value => value.toFixed(1).replace("-", "−")}, value => { scores[i] = value; show() }))
  return ["Try it: the cat sat on the …", [llm.slider("temperature", {min: 0.05, max: 5, step: 0.05, value: heat, say: value => value.toFixed(2)}, value => { heat = value; show() }), place, llm.make("details", {}, llm.make("summary", {}, "Move the scores, too"), dials)]]
}

// ---- 09: who looks at whom

function looks() {
  const {make, percent, visible, spoken} = llm
  const typed = make("textarea", {rows: 2, spellcheck: "false", "aria-label": "A text for the demo model", oninput: () => work()})
  typed.value = "ROMEO:\nI know the king; he will not come."
  const tokens = make("p", {class: "looks"}), said = make("p", {class: "faint"}), choices = make("div"), square = make("div", {class: "square"})
  let machine, tokenizer, ids = [], block = 0, head = 0, position = 0, seen = null, work = () => {}
  const name = id => visible(tokenizer.texts.get(id))

  function show() {
    const row = seen.maps[head][position], most = Math.max(...row), held = tokens.contains(document.activeElement)
    tokens.replaceChildren(...ids.map((id, s) => make("button", {type: "button", class: `token look${s === position ? " asks" : ""}`, vars: {share: s <= position ? row[s] / most : 0}, "aria-pressed": String(s === position), tabindex: s === position ? 0 : -1,
      "aria-label": `${spoken(name(id))}${s <= position ? `, gets ${percent(row[s])}` : ", later"}`, onclick: () => { position = s; show() }}, name(id))))
    if (held) tokens.children[position].focus()
    const best = Array.from(row.keys()).sort((a, b) => row[b] - row[a]).slice(0, 3)
    said.replaceChildren(make("span", {class: "token"}, name(ids[position])), " takes most from ", ...best.flatMap((s, i) => [i ? ", " : "", make("span", {class: "token"}, name(ids[s])), ` (${percent(row[s])})`]), ". Choose another token to ask for it; the bluest has the largest weight.")
    square.replaceChildren(llm.map(seen.maps[head], `Head ${head + 1} of block ${block + 1}: a row for each token that looks`, (row, column) => `${name(ids[row])} looks at ${name(ids[column])}: ${percent(seen.maps[head][row][column])}`, position))
  }
  tokens.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key]
    if (!step || !(ids[position + step] >= 0)) return
    event.preventDefault()
    position += step
    show()
  })

  async function wake(failed) {
    [tokenizer, machine] = await wakeDemo()
    const names = n => Array.from({length: n}, (_, i) => String(i + 1))
    choices.append(llm.choice("Block", names(machine.config.num_layers), 0, i => { block = i; work() }), llm.choice("Head", names(machine.config.num_heads), 0, i => { head = i; show() }))
    work = llm.latest(async () => {
      try {
        const found = tokenizer.encode(typed.value.slice(0, 2000)).slice(0, machine.config.max_seq_len)
        if (!found.length) return
        const same = found.join() === ids.join()
        seen = await machine.ask("read", {ids: found, off: [], position: found.length - 1, block})
        ids = found
        if (!same) position = ids.length - 1
        show()
      } catch (error) { failed(error) }
    })
    work()
  }
  return ["Try it: who looks at whom, in your own sentence", [typed, choices, tokens, said, square, make("p", {class: "faint"}, "One head looks for the beginning of the line, and one mostly at the token before. Can you find them?"), machineLink()], wake]
}

// ---- 10: turning

function turning() {
  const {make} = llm, d = 8, frequency = llm.frequencies({d_k: d, rope_theta: 100, rope_scaling: null})
  const q = [1, 0.2, -0.6, 0.9, 0.8, -0.5, 0.7, 0.7], k = [0.9, -0.3, 0.2, 1, 1, 0.1, 0.4, 0.9], place = make("div"), most = 40
  let m = 9, n = 4
  const turned = (x, position) => llm.turned(Float32Array.from(x), position, frequency, d)
  const score = (m, n) => { const a = turned(q, m), b = turned(k, n); return a.reduce((sum, value, i) => sum + value * b[i], 0) / Math.sqrt(d) }

  function show() {
    const a = turned(q, m), b = turned(k, n), x = distance => 10 + 380 * (distance + most) / (2 * most), y = value => 60 - 26 * value
    const curve = Array.from({length: 2 * most + 1}, (_, i) => `${i ? "L" : "M"}${x(i - most).toFixed(1)} ${y(score(most, most - (i - most))).toFixed(1)}`).join("")
    place.replaceChildren(
      llm.dials(b, a, frequency, `Four pairs of features: the query turned to position ${m}, the key to position ${n}`),
      make("p", {}, `Distance ${m - n}: the score is `, make("strong", {}, score(m, n).toFixed(3).replace("-", "−")), "."),
      make("svg:svg", {class: "curve", viewBox: "0 0 400 120", role: "img", "aria-label": "The score against the distance; a dot marks where you are"},
        make("svg:path", {d: "M10 60H390M200 8V112", class: "axis"}), make("svg:path", {d: curve, class: "line"}), make("svg:circle", {cx: x(m - n), cy: y(score(m, n)), r: 5}),
        make("svg:text", {x: 390, y: 116, "text-anchor": "end"}, "distance"), make("svg:text", {x: 206, y: 14}, "score")),
      make("p", {class: "faint"}, "Blue is the query and grey the key, each pair at its own speed. Moved together, all hands turn, and the score stays."))
  }
  show()
  const query = llm.slider("query at", {min: 0, max: most, step: 1, value: m}, value => { m = value; show() })
  const key = llm.slider("key at", {min: 0, max: most, step: 1, value: n}, value => { n = value; show() })
  const both = step => () => {
    if (Math.min(m, n) + step < 0 || Math.max(m, n) + step > most) return
    for (const [slider, value] of [[query, m + step], [key, n + step]]) {
      slider.querySelector("input").value = value
      slider.querySelector("input").dispatchEvent(new Event("input"))
    }
  }
  return ["Try it: turn a query and a key", [query, key, make("div", {class: "buttons"}, make("button", {type: "button", onclick: both(-1)}, "Both one back"), make("button", {type: "button", onclick: both(1)}, "Both one on")), place]]
}

// ---- 18: the cuts

function cuts() {
  const {make, percent, visible} = llm, how = {temperature: 1, top_k: 0, top_p: 1, min_p: 0}
  const typed = make("textarea", {rows: 2, spellcheck: "false", "aria-label": "A text for the demo model to go on from", oninput: () => work()})
  typed.value = "ROMEO: What is"
  const place = make("div"), said = make("p", {class: "faint"})
  let machine, tokenizer, logits = null, work = () => {}
  function show() {
    if (!logits) return
    const shares = llm.nextProbabilities(logits, how), plain = llm.softmax(logits), name = id => visible(tokenizer.texts.get(id))
    const kept = shares.reduce((n, share) => n + (share > 0), 0), left = plain.reduce((sum, share, id) => sum + (shares[id] > 0 ? 0 : share), 0)
    place.replaceChildren(llm.bars(llm.best(plain, 12).map(({id}) => ({label: name(id), share: shares[id], was: plain[id], ...llm.cut(shares[id])}))), llm.lot(shares, null, "What is kept, on a line from 0 to 1"))
    said.textContent = `${kept} of ${shares.length} tokens are kept; those that were cut had ${percent(left)} of the probability. Outlined: what the model says.`
  }
  async function wake(failed) {
    [tokenizer, machine] = await wakeDemo()
    work = llm.latest(async () => {
      try {
        const ids = tokenizer.encode(typed.value.slice(-2000)).slice(-machine.config.max_seq_len)
        if (!ids.length) return
        logits = (await machine.ask("read", {ids, off: [], position: ids.length - 1, block: 0})).logits
        show()
      } catch (error) { failed(error) }
    })
    work()
  }
  return ["Try it: heat a distribution, and cut it", [typed, make("div", {class: "sliders"}, llm.samplers(how, ["temperature", "top_k", "top_p", "min_p"], show)), place, said, machineLink()], wake]
}

start()
}
