// What scenarios are told with: clients of the stock SDK, what they saw, in order, and the test that
// started this process, which does on request what a client cannot: publish, sign, cut, restart.
// Requests go out on stdout and answers come in on stdin, a JSON value a line; nothing here sleeps.

import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { isDeepStrictEqual } from 'node:util';
import { Centrifuge } from 'centrifuge';
import { EventSource } from 'eventsource';
import WebSocket from 'ws';

// No event is waited for longer.
const PATIENCE = 15_000;

// Two ways to the gateway, HOST:PORT each, and what carries the clients.
const { proxy, direct, transport } = JSON.parse(process.env.CAMPANILE_STAGE);
export { proxy, transport };
const unanswered = [];
createInterface({ input: process.stdin }).on('line', (line) => unanswered.shift()(JSON.parse(line)));

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

// Asks the test to do something; resolves when it is done.
export function ask(what, details = {}) {
  return new Promise((resolve) => {
    unanswered.push(resolve);
    say({ ask: what, ...details });
  });
}

// Signs claims with the gateway's secret.
export const sign = (claims) => ask('token', { claims });

// The server publishes `{ n }` for each number; gives the position of the last.
export const publish = (channel, from, to) => ask('publish', { channel, from, to });

// So many seconds from now, as tokens say it.
export const within = (seconds) => Math.floor(Date.now() / 1000) + seconds;

export const upTo = (last, first = 1) => Array.from({ length: last - first + 1 }, (_, i) => first + i);

// Must be so, and the test hears of it.
export function check(fact, actual, expected) {
  assert.deepEqual(actual, expected, `${fact}: ${JSON.stringify(actual)}`);
  say({ fact, value: actual });
}

// Must fail with this code.
export async function refused(fact, code, promise) {
  const error = await promise.then((result) => assert.fail(`${fact}: ${JSON.stringify(result)}`), (e) => e);
  check(fact, error.code, code);
}

const FAST = { minReconnectDelay: 10, maxReconnectDelay: 100 };

// What each transport asks of Node; fetch and streams are there.
const MEANS = { websocket: WebSocket, eventsource: EventSource, fetch, readableStream: ReadableStream };

export const endpoint = (address, name = transport) => ({
  transport: name,
  endpoint: `${name === 'websocket' ? 'ws' : 'http'}://${address}/connection/${name}`,
});

// A client by these endpoints, in this order.
export const clientBy = (endpoints, address, options = {}) =>
  new Centrifuge(endpoints, { ...MEANS, emulationEndpoint: `http://${address}/emulation`, ...FAST, ...options });

// A client behind the proxy that can be cut.
export const client = (options = {}) => clientBy([endpoint(proxy)], proxy, options);

// A client whom no cut concerns.
export const bystander = (options = {}) => clientBy([endpoint(direct)], direct, options);

// Must become so. Over a WebSocket it is so at once; posts may overtake each other, so what one of
// them asks may be answered before what an earlier one does.
export async function becomes(fact, read, expected) {
  let actual = await read();
  const tries = transport === 'websocket' ? 0 : 1000;
  for (let i = 0; i < tries && !isDeepStrictEqual(actual, expected); i++) actual = await read();
  check(fact, actual, expected);
}

export const by = async (claims, make = client) => make({ token: await sign(claims) });

// Connects; resolves when it is.
export async function connected(client) {
  client.connect();
  await client.ready(PATIENCE);
  return client;
}

// Subscribes; resolves when it is.
export async function subscribed(client, channel, options = {}) {
  const subscription = client.newSubscription(channel, { minResubscribeDelay: 10, maxResubscribeDelay: 100, ...options });
  subscription.subscribe();
  await subscription.ready(PATIENCE);
  return subscription;
}

// The events of these names from now on, in their order.
export function watch(emitter, ...names) {
  const seen = [];
  let wake = () => {};
  for (const name of names) {
    emitter.on(name, (context) => {
      seen.push([name, context]);
      wake();
    });
  }
  const take = async (wanted = 'event') => {
    if (seen.length === 0) {
      await new Promise((resolve, reject) => {
        const late = setTimeout(() => reject(new Error(`no ${wanted} within ${PATIENCE} ms`)), PATIENCE);
        wake = () => {
          clearTimeout(late);
          resolve();
        };
      });
    }
    return seen.shift();
  };
  return {
    // The next one and its name.
    any: () => take(),
    // The next one, which must have this name.
    async next(name) {
      const [actual, context] = await take(name);
      assert.equal(actual, name, `${actual} instead of ${name}: ${JSON.stringify(context)}`);
      return context;
    },
    // What `read` finds in the next so many publications, and nothing else between them.
    async publications(count, read = (publication) => publication.data.n) {
      const found = [];
      while (found.length < count) found.push(read(await this.next('publication')));
      return found;
    },
    // Nothing more was seen so far.
    quiet(fact) {
      check(fact, seen, []);
    },
  };
}

// Runs one scenario; the last line says how it ended.
export async function play(scenario) {
  await scenario();
  say({ done: true });
  process.exit(0);
}
