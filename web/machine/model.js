// The Transformer of the course in typed arrays, one token at a time, and the choice of the next token.
// All of it is one function, so that a page can hand its text to a worker: a page opened from a disk may load no worker by its address.
{
function makeModel() {
  class Refused extends Error {}
  const refuse = why => { throw new Refused(why) }

  const LARGEST = 256 * 2 ** 20   // bytes of a file
  const FIELDS = {vocab_size: "whole", max_seq_len: "whole", d_model: "whole", num_layers: "whole", num_heads: "whole", d_ff: "whole", rope_theta: "number",
                  num_kv_heads: "whole", tie: "yes or no", norm_eps: "number", d_k: "whole", qkv_bias: "yes or no", qk_norm: "yes or no", rope_scaling: "rule", variant: "nothing", dropout: "share"}   // dropout is for learning; here nothing is left out
  const DEFAULTS = {num_kv_heads: null, norm_eps: 1e-5, d_k: null, qkv_bias: false, qk_norm: false, rope_scaling: null, variant: null, dropout: 0}
  const MAY_LACK = ["num_kv_heads", "d_k", "rope_scaling", "variant"]   // null says: as usual

  const FITS = {
    whole: value => Number.isInteger(value) && value >= 1 && value < 2 ** 24,
    number: value => Number.isFinite(value) && value > 0,
    share: value => value >= 0 && value < 1,
    "yes or no": value => typeof value === "boolean",
    nothing: () => false,   // what Gemma, Mistral and others changed is not computed here
    rule: value => ["factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"].every(name => FITS.number(value[name])) && value.high_freq_factor > value.low_freq_factor,
  }

  function shapeOf(said) {
    const config = {...DEFAULTS, ...said}
    for (const name of Object.keys(config)) if (!Object.hasOwn(FIELDS, name)) refuse(`This model has ${name}, which this page does not support; it may be of a newer version of the course.`)
    for (const [name, kind] of Object.entries(FIELDS)) {
      const value = config[name]
      if (kind === "nothing" && value !== null) refuse("This model is of another family than Llama's, and this page does not support it.")
      if (value === undefined) refuse(`This model does not say its ${name}.`)
      if (!(value === null && MAY_LACK.includes(name)) && !FITS[kind](value)) refuse(`This model has ${name} = ${JSON.stringify(value)}, which is not possible.`)
    }
    config.num_kv_heads ??= config.num_heads
    if (config.num_heads % config.num_kv_heads) refuse(`This model has ${config.num_heads} heads, which is not a multiple of its ${config.num_kv_heads} heads of keys.`)
    if (config.d_k === null && config.d_model % config.num_heads) refuse(`This model has ${config.num_heads} heads, but its width must be a multiple of that, and is ${config.d_model}.`)
    config.d_k ??= config.d_model / config.num_heads
    if (config.d_k % 2) refuse(`This model has heads of ${config.d_k} features, but RoPE needs an even number.`)
    return config
  }

  function shapesOf(c) {   // of every tensor, by its name
    const queries = c.num_heads * c.d_k, keys = c.num_kv_heads * c.d_k
    const shapes = {"embedding.weight": [c.vocab_size, c.d_model], "norm.weight": [c.d_model]}
    if (!c.tie) shapes["head.weight"] = [c.vocab_size, c.d_model]
    for (let i = 0; i < c.num_layers; i++) {
      const add = (name, ...shape) => { shapes[`blocks.${i}.${name}`] = shape }
      add("attention_norm.weight", c.d_model)
      add("ffn_norm.weight", c.d_model)
      for (const [name, size] of [["q", queries], ["k", keys], ["v", keys]]) {
        add(`attention.${name}_proj.weight`, size, c.d_model)
        if (c.qkv_bias) add(`attention.${name}_proj.bias`, size)
      }
      if (c.qk_norm) for (const name of ["q", "k"]) add(`attention.${name}_norm.weight`, c.d_k)
      add("attention.output_proj.weight", c.d_model, queries)
      add("ffn.w1.weight", c.d_ff, c.d_model)
      add("ffn.w2.weight", c.d_model, c.d_ff)
      add("ffn.w3.weight", c.d_ff, c.d_model)
    }
    return shapes
  }

  // ---- Numbers in a file, as float32

  let halves = null   // of each float16, its value
  function fromHalf(bits) {
    if (!halves) halves = Float32Array.from({length: 65536}, (_, bits) => {
      const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023
      if (power === 31) return rest ? NaN : sign * Infinity
      return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : 2 ** -14 * rest / 1024)
    })
    return Float32Array.from(bits, half => halves[half])
  }
  function fromBrain(bits) {
    const wide = new Uint32Array(bits.length)
    for (let i = 0; i < bits.length; i++) wide[i] = bits[i] << 16
    return new Float32Array(wide.buffer)
  }
  const KINDS = {
    F16: {size: 2, read: bytes => fromHalf(new Uint16Array(bytes))}, BF16: {size: 2, read: bytes => fromBrain(new Uint16Array(bytes))},
    F32: {size: 4, read: bytes => new Float32Array(bytes)}, F64: {size: 8, read: bytes => Float32Array.from(new Float64Array(bytes))},
  }

  function readModel(buffer) {   // a file of `save_model`
    if (buffer.byteLength > LARGEST) refuse(`This model is larger than the ${LARGEST / 2 ** 20} MB that this page takes.`)
    const cut = "This is not a complete .safetensors file; it may have been cut short."
    if (buffer.byteLength < 8) refuse(cut)
    const size = Number(new DataView(buffer).getBigUint64(0, true))
    if (size < 2 || size > buffer.byteLength - 8) refuse(cut)
    let header
    try { header = JSON.parse(new TextDecoder("utf-8", {fatal: true}).decode(new Uint8Array(buffer, 8, size))) } catch { refuse(cut) }
    const about = header?.__metadata__
    let said
    try { said = JSON.parse(about.config) } catch { refuse("This model does not say what shape it has; python -m llm_course.checkpoint writes one.") }
    if (typeof said !== "object" || said === null) refuse("This model does not say what shape it has.")
    if (about.parts !== undefined && about.parts !== "{}") refuse("This model has parts that are not the course's own, which this page does not support.")
    const config = shapeOf(said), shapes = {}, weights = {}
    if (config.num_layers > Object.keys(header).length) refuse(`This model asks for ${config.num_layers} blocks, which it does not hold.`)
    Object.assign(shapes, shapesOf(config))
    for (const [name, shape] of Object.entries(shapes)) {
      const entry = header[name]
      if (!entry) refuse(`This model lacks the tensor ${name}.`)
      if (JSON.stringify(entry.shape) !== JSON.stringify(shape)) refuse(`This model holds ${name} in the shape ${JSON.stringify(entry.shape)}, but its own description asks for ${JSON.stringify(shape)}.`)
      const kind = KINDS[entry.dtype] ?? refuse(`This model holds ${name} as ${entry.dtype}; this page reads ${Object.keys(KINDS).join(", ")}.`)
      const [begin, end] = entry.data_offsets ?? [], count = shape.reduce((a, b) => a * b)
      if (!(Number.isInteger(begin) && begin >= 0 && end === begin + count * kind.size && 8 + size + end <= buffer.byteLength)) refuse(cut)
      weights[name] = kind.read(buffer.slice(8 + size + begin, 8 + size + end))
      if (!weights[name].every(Number.isFinite)) refuse(`This model holds numbers in ${name} that are not finite.`)
    }
    if (config.tie) weights["head.weight"] = weights["embedding.weight"]
    const left = Object.keys(header).find(name => name !== "__metadata__" && !(name in weights))
    if (left) refuse(`This model holds the tensor ${left}, which the course's Transformer does not have.`)
    return new Transformer(config, weights)
  }

  // ---- The layers, for one token

  function linear(x, weight, bias = null) {
    const width = x.length, out = new Float32Array(weight.length / width)
    for (let row = 0, at = 0; row < out.length; row++) {
      let a = 0, b = 0, c = 0, d = 0, i = 0   // four sums, which a processor can do side by side
      for (; i + 3 < width; i += 4, at += 4) {
        a += weight[at] * x[i]
        b += weight[at + 1] * x[i + 1]
        c += weight[at + 2] * x[i + 2]
        d += weight[at + 3] * x[i + 3]
      }
      for (; i < width; i++) a += weight[at++] * x[i]
      out[row] = a + b + c + d + (bias ? bias[row] : 0)
    }
    return out
  }

  function rmsNorm(x, gain, eps) {
    const out = new Float32Array(x.length)
    let squares = 0
    for (let i = 0; i < x.length; i++) squares += x[i] * x[i]
    const size = Math.sqrt(squares / x.length + eps)
    for (let i = 0; i < x.length; i++) out[i] = x[i] / size * gain[i]
    return out
  }

  const silu = z => z / (1 + Math.exp(-z))
  function added(x, y) {
    const sum = new Float32Array(x.length)
    for (let i = 0; i < x.length; i++) sum[i] = x[i] + y[i]
    return sum
  }

  function softmax(scores) {
    const shares = new Float32Array(scores.length)
    let top = -Infinity, total = 0
    for (let i = 0; i < scores.length; i++) if (scores[i] > top) top = scores[i]
    for (let i = 0; i < scores.length; i++) total += shares[i] = Math.exp(scores[i] - top)
    for (let i = 0; i < scores.length; i++) shares[i] /= total
    return shares
  }

  function frequencies(c) {   // radians for each token, one per pair
    const rule = c.rope_scaling
    return Float64Array.from({length: c.d_k / 2}, (_, pair) => {
      const frequency = c.rope_theta ** -(2 * pair / c.d_k)
      if (!rule) return frequency
      const rounds = rule.original_max_seq_len * frequency / (2 * Math.PI)
      const kept = Math.min(1, Math.max(0, (rounds - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor)))
      return frequency * (kept + (1 - kept) / rule.factor)
    })
  }

  function turned(x, position, frequency, d) {   // each pair of neighbours, in every head
    const out = new Float32Array(x.length)
    for (let i = 0; i < x.length; i += 2) {
      const angle = position * frequency[i % d / 2], cos = Math.cos(angle), sin = Math.sin(angle)
      out[i] = x[i] * cos - x[i + 1] * sin
      out[i + 1] = x[i] * sin + x[i + 1] * cos
    }
    return out
  }

  const sumOfSquares = x => x.reduce((sum, value) => sum + value * value, 0)
  function surprise(logits, target) {   // minus the logarithm of the target's share
    const top = logits.reduce((a, b) => Math.max(a, b))
    return top + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0)) - logits[target]
  }

  class Transformer {
    constructor(config, weights) {
      this.config = config
      this.weights = weights
      this.frequency = frequencies(config)
      this.forget()
    }

    forget() {   // keys and values of the tokens read so far, by block and position
      this.ids = []
      this.streams = []   // of each token, the stream behind the last block
      this.cache = Array.from({length: this.config.num_layers}, () => ({keys: [], values: [], shares: []}))
      this.off = new Set()
    }

    get count() {
      const own = Object.entries(this.weights).filter(([name]) => !(this.config.tie && name === "head.weight"))
      return own.reduce((sum, [, x]) => sum + x.length, 0)
    }

    // Read ids that follow each other. What was read before is kept, as long as the beginning and the heads that are off are the same.
    read(ids, off = []) {
      const same = off.length === this.off.size && off.every(head => this.off.has(head))
      if (!same) { this.forget(); this.off = new Set(off) }
      let known = 0
      while (known < ids.length && this.ids[known] === ids[known]) known++
      this.ids = this.ids.slice(0, known)
      for (const id of ids.slice(known)) {
        this.step(id, this.ids.length)
        this.ids.push(id)
      }
    }

    step(id, position, trace = null) {   // `trace` takes in all that is computed on the way
      const c = this.config, w = this.weights
      if (!(id >= 0 && id < c.vocab_size)) refuse(`The tokenizer gives the id ${id}, but this model knows ${c.vocab_size} of them; they do not belong together.`)
      if (position >= c.max_seq_len) refuse(`This model can read ${c.max_seq_len} tokens, and this text has more.`)
      let x = w["embedding.weight"].slice(id * c.d_model, (id + 1) * c.d_model)
      if (trace) Object.assign(trace, {embedding: x, blocks: []})
      for (let i = 0; i < c.num_layers; i++) {
        const seen = trace ? {} : null
        x = this.block(x, i, position, seen)
        trace?.blocks.push(seen)
      }
      this.streams[position] = x
      return x
    }

    block(x, i, position, seen) {
      const c = this.config, part = name => this.weights[`blocks.${i}.${name}`]
      const normed = rmsNorm(x, part("attention_norm.weight"), c.norm_eps)
      const found = this.attention(normed, i, position, part, seen)
      const middle = added(x, found)
      const normed2 = rmsNorm(middle, part("ffn_norm.weight"), c.norm_eps)
      const gate = linear(normed2, part("ffn.w1.weight")), value = linear(normed2, part("ffn.w3.weight"))
      const passed = new Float32Array(c.d_ff)
      for (let j = 0; j < c.d_ff; j++) passed[j] = silu(gate[j]) * value[j]
      const thought = linear(passed, part("ffn.w2.weight"))
      const out = added(middle, thought)
      if (seen) Object.assign(seen, {before: x, normed, found, middle, normed2, gate: gate.map(silu), value, passed, thought, out})
      return out
    }

    attention(x, i, position, part, seen) {
      const c = this.config, cache = this.cache[i], group = c.num_heads / c.num_kv_heads
      let [q, k, v] = ["q", "k", "v"].map(name => linear(x, part(`attention.${name}_proj.weight`), part(`attention.${name}_proj.bias`)))
      if (c.qk_norm) {
        const each = (rows, gain) => {
          for (let at = 0; at < rows.length; at += c.d_k) rows.set(rmsNorm(rows.slice(at, at + c.d_k), gain, c.norm_eps), at)
          return rows
        }
        q = each(q, part("attention.q_norm.weight"))
        k = each(k, part("attention.k_norm.weight"))
      }
      const asked = turned(q, position, this.frequency, c.d_k)
      cache.keys[position] = turned(k, position, this.frequency, c.d_k)
      cache.values[position] = v
      const mixed = new Float32Array(c.num_heads * c.d_k), scores = [], shares = []
      for (let head = 0; head < c.num_heads; head++) {
        const from = Math.floor(head / group) * c.d_k, mine = head * c.d_k, row = new Float32Array(position + 1)
        for (let s = 0; s <= position; s++) {
          let sum = 0
          const key = cache.keys[s]
          for (let j = 0; j < c.d_k; j++) sum += asked[mine + j] * key[from + j]
          row[s] = sum / Math.sqrt(c.d_k)
        }
        const share = softmax(row)
        if (!this.off.has(i * c.num_heads + head)) for (let s = 0; s <= position; s++) {
          const value = cache.values[s]
          for (let j = 0; j < c.d_k; j++) mixed[mine + j] += share[s] * value[from + j]
        }
        scores.push(row)
        shares.push(share)
      }
      cache.shares[position] = shares
      if (seen) Object.assign(seen, {q, k, v, turned: asked, scores, shares, mixed})
      return linear(mixed, part("attention.output_proj.weight"))
    }

    logits(x) { return linear(this.normed(x), this.weights["head.weight"]) }
    normed(x) { return rmsNorm(x, this.weights["norm.weight"], this.config.norm_eps) }

    look(position, lens = true) {   // all that happens to one token of the text that was read, and what the stream says at each depth
      const trace = {}, x = this.step(this.ids[position], position, trace)
      trace.normed = this.normed(x)
      trace.logits = this.logits(x)
      if (lens) trace.lens = [trace.embedding, ...trace.blocks.flatMap(block => [block.middle, block.out])].map(stream => best(softmax(this.logits(stream)), 3))
      return trace
    }

    // What a step of training would do to the head, from the last tokens that were read: each should say the one after it. The weights stay as they are.
    learn(rate, position, longest = 1, decay = 0.01) {
      const head = this.weights["head.weight"], d = this.config.d_model, vocab = this.config.vocab_size
      const most = Math.max(1, Math.min(16, Math.floor(2 ** 25 / head.length))), start = Math.max(0, this.ids.length - 1 - most)
      const targets = this.ids.slice(start + 1), n = targets.length
      if (!n) return null
      const inputs = this.streams.slice(start, start + n).map(x => this.normed(x)), logits = inputs.map(x => linear(x, head)), shares = logits.map(softmax)
      const gradient = id => {   // of the mean loss, for one row of the head
        const sum = new Float32Array(d)
        for (let i = 0; i < n; i++) {
          const pull = (shares[i][id] - (targets[i] === id)) / n
          for (let j = 0; j < d; j++) sum[j] += pull * inputs[i][j]
        }
        return sum
      }
      let squares = 0
      for (let id = 0; id < vocab; id++) squares += sumOfSquares(gradient(id))
      const norm = Math.sqrt(squares), factor = Math.min(1, longest / (norm + 1e-6))
      const change = id => {   // AdamW's first step, whose averages are the gradient and its square
        const row = head.subarray(id * d, (id + 1) * d)
        return gradient(id).map((g, j) => -rate * (decay * row[j] + factor * g / (Math.abs(factor * g) + 1e-8)))
      }
      const after = logits.map(row => row.slice())
      let moved = 0
      for (let id = 0; id < vocab; id++) {
        const row = change(id)
        moved += sumOfSquares(row)
        for (let i = 0; i < n; i++) for (let j = 0; j < d; j++) after[i][id] += inputs[i][j] * row[j]
      }
      const shown = targets[Math.min(n - 1, Math.max(0, position - start))]
      return {start, targets, losses: logits.map((row, i) => surprise(row, targets[i])), after: after.map((row, i) => surprise(row, targets[i])),
              norm, factor, shown, gradient: gradient(shown), change: change(shown), ratio: Math.sqrt(moved / sumOfSquares(head))}
    }

    tensors() {   // of the file: each name, its shape, and the size of its numbers
      return Object.entries(shapesOf(this.config)).map(([name, shape]) => ({name, shape, size: Math.sqrt(sumOfSquares(this.weights[name]) / this.weights[name].length)}))
    }

    shares(block, head) { return this.cache[block].shares.slice(0, this.ids.length).map(row => row[head]) }   // of each token, how it shares its look back
  }

  function best(shares, n) {   // the likeliest ids; of equals the lower ids
    const found = []
    for (let id = 0; id < shares.length; id++) {
      if (found.length === n && !(shares[id] > shares[found[n - 1]])) continue
      let place = Math.min(found.length, n - 1)
      while (place > 0 && shares[id] > shares[found[place - 1]]) { found[place] = found[place - 1]; place-- }
      found[place] = id
    }
    return found.map(id => ({id, share: shares[id]}))
  }
  const ranked = scores => new Uint32Array(scores.length).map((_, id) => id).sort((a, b) => scores[b] - scores[a] || a - b)

  // ---- The choice of the next token: temperature, top-k, top-p and min-p, in this order

  function nextProbabilities(logits, {temperature = 0.8, top_k = 0, top_p = 0.9, min_p = 0}) {
    const [{id: first, share: top}] = best(logits, 1), vocab = logits.length
    if (!Number.isFinite(top)) refuse("The scores of the next token are not finite.")
    const scores = new Float32Array(vocab)
    if (temperature === 0) { scores[first] = 1; return scores }
    for (let id = 0; id < vocab; id++) scores[id] = (logits[id] - top) / temperature
    const order = (top_k > 0 && top_k < vocab) || top_p < 1 ? ranked(logits) : []
    if (top_k > 0 && top_k < vocab) for (const id of order.slice(top_k)) scores[id] = -Infinity
    if (top_p < 1) {
      const shares = softmax(scores)
      let upto = 0
      for (const id of order) {
        if (upto >= top_p && id !== first) scores[id] = -Infinity
        upto += shares[id]
      }
    }
    if (min_p > 0) for (let id = 0; id < vocab; id++) if (scores[id] < Math.log(min_p)) scores[id] = -Infinity
    return softmax(scores)
  }

  function draw(shares, chance) {   // the first id whose running sum exceeds `chance`, a uniform share of all
    let total = 0, upto = 0
    for (const share of shares) total += share
    for (let id = 0; id < shares.length; id++) {
      upto += shares[id]
      if (upto > chance * total) return id
    }
    return shares.findLastIndex(share => share > 0)
  }

  // ---- The learning rate, as `cos_lr_scheduler` has it: a climb, and half a cosine down to zero

  function rateAt(step, warmup = 100, end = 1000, most = 0.01) {
    if (step < warmup) return most * step / warmup
    return step >= end ? 0 : most / 2 * (1 + Math.cos(Math.PI * (step - warmup) / (end - warmup)))
  }

  return {Refused, readModel, rateAt, softmax, nextProbabilities, draw, best, turned, frequencies, LARGEST}
}

// ---- In the worker

function answer(made) {
  let model = null
  const tasks = {
    load({buffer}) {
      model = made.readModel(buffer)
      return {config: model.config, count: model.count, tensors: model.tensors()}
    },
    read({ids, off, position, block, all = true, rate = null}) {   // and of one block, how each head shares its looks back
      model.read(ids, off)
      if (!all) return model.look(position, false)
      const heads = Array.from({length: model.config.num_heads}, (_, head) => head)
      return {...model.look(position), maps: heads.map(head => model.shares(block, head)), learnt: rate === null ? null : model.learn(rate, position)}
    },
  }
  onmessage = ({data: {number, task, ...what}}) => {
    try { postMessage({number, found: tasks[task](what)}) }
    catch (error) { postMessage({number, refused: error instanceof made.Refused ? error.message : `The machine stopped: ${error.message}.`}) }
  }
}

class Machine {   // the model, in a thread of its own
  constructor() {
    const source = `(${answer})((${makeModel})())`
    this.worker = new Worker(URL.createObjectURL(new Blob([source], {type: "text/javascript"})))
    this.waiting = new Map()
    this.number = 0
    this.worker.onmessage = ({data: {number, found, refused}}) => {
      const [done, failed] = this.waiting.get(number)
      this.waiting.delete(number)
      if (refused) failed(new llm.Refused(refused))
      else done(found)
    }
  }

  ask(task, what, moved = []) {
    return new Promise((done, failed) => {
      this.waiting.set(++this.number, [done, failed])
      this.worker.postMessage({number: this.number, task, ...what}, moved)
    })
  }

  end() {
    this.worker.terminate()
    for (const [, failed] of this.waiting.values()) failed(new llm.Refused("Another model has taken its place."))
  }
}

const {Refused: _, ...made} = makeModel()
globalThis.llm = {...globalThis.llm, ...made, Machine}
}
