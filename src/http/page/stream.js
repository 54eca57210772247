// Reads /api/events/stream for as long as the page lives, and goes on where it was after every break.
// It speaks the wire of EventSource but is not one: EventSource hears only names that it knows
// beforehand, cannot tell a session that is over from a server that is away, and gives up on both.

// Nothing at all for so long, not even a comment, means that the connection is dead.
const SILENCE = 60_000;
const LONGEST_PAUSE = 10_000;

// `on` hears open(resumed), event(event), state(name), lost() when history was cut, and signedOut().
export class Stream {
  #channels = [];
  #cursor = null;
  #on;
  #stop = null;
  #wake = () => {};
  #failures = 0;

  constructor(on) {
    this.#on = on;
    addEventListener('online', () => this.#wake());
  }

  // Follows these channels from now on.
  follow(channels) {
    if (channels.join() === this.#channels.join()) return;
    this.close();
    this.#channels = channels;
    this.resume();
  }

  // Gives the connection back and keeps the place: a browser has few connections for all its tabs.
  pause() {
    this.#stop?.abort();
    this.#stop = null;
  }

  resume() {
    if (!this.#stop && this.#channels.length > 0) this.#run((this.#stop = new AbortController()));
  }

  // Ends it for good. A place on these channels means nothing for others.
  close() {
    this.pause();
    this.#channels = [];
    this.#cursor = null;
    this.#failures = 0;
  }

  async #run(stop) {
    while (!stop.signal.aborted) {
      this.#on.state(this.#failures === 0 ? 'connecting' : 'degraded');
      const pause = await this.#connection(stop.signal).catch(() => null);
      if (stop.signal.aborted) return;
      this.#failures += 1;
      const backoff = Math.min(LONGEST_PAUSE, 250 * 2 ** this.#failures) * (0.5 + Math.random());
      this.#on.state('degraded');
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pause ?? backoff);
        this.#wake = () => (clearTimeout(timer), resolve());
        stop.signal.addEventListener('abort', this.#wake, { once: true });
      });
    }
  }

  // One connection, to its end; answers how long the server wants to be left alone, if it says so.
  async #connection(signal) {
    const cut = new AbortController();
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => cut.abort(), SILENCE);
    };
    try {
      heard();
      const headers = { Accept: 'text/event-stream' };
      const resumed = this.#cursor !== null;
      if (resumed) headers['Last-Event-ID'] = this.#cursor;
      const query = new URLSearchParams({ channels: this.#channels.join() });
      const either = AbortSignal.any([signal, cut.signal]);
      const answer = await fetch(`/api/events/stream?${query}`, { headers, signal: either, cache: 'no-store' });
      if (answer.status === 401) this.#on.signedOut();
      if (answer.status === 400) this.#cursor = null;
      if (!answer.ok) {
        await answer.body?.cancel();
        const after = Number(answer.headers.get('Retry-After'));
        return after > 0 ? after * 1000 : null;
      }
      this.#failures = 0;
      this.#on.state('live');
      this.#on.open(resumed);
      let rest = '';
      for await (const piece of read(answer.body.pipeThrough(new TextDecoderStream()))) {
        heard();
        const frames = (rest + piece).split('\n\n');
        rest = frames.pop();
        frames.forEach((frame) => this.#frame(frame));
      }
      return null;
    } finally {
      clearTimeout(silence);
    }
  }

  #frame(frame) {
    let name = 'message';
    let data = null;
    for (const line of frame.split('\n')) {
      const at = line.indexOf(':');
      if (at < 1) continue;
      const value = line.slice(at + 1).replace(/^ /, '');
      const field = line.slice(0, at);
      if (field === 'id') this.#cursor = value;
      else if (field === 'event') name = value;
      else if (field === 'data') data = value;
    }
    if (data === null) return;
    if (name === 'stream:expired') this.#on.signedOut();
    else if (name === 'stream:reset') this.#on.lost();
    else if (!name.startsWith('stream:')) this.#on.event(JSON.parse(data));
  }
}

// The pieces of a body; not every browser iterates over one by itself.
async function* read(body) {
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
