// What scenarios are told with: Debian's Chromium, pages in it, and the test that started this process,
// which does on request what a browser cannot: make links, sign webhooks, restart. Requests go out on
// stdout and answers come in on stdin, a JSON value a line; nothing here sleeps.

import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

// No sign is waited for longer.
const PATIENCE = 15_000;

export const { origin } = JSON.parse(process.env.CAMPANILE_STAGE);
export const { port } = new URL(origin);

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

// A new link, as `campanile sign-in` prints it.
export const link = () => ask('link');

// A signed webhook for the start of each of these runs.
export const webhooks = (from, to = from) => ask('webhooks', { from, to });

// How many requests were refused with this code.
export const refusals = (code) => ask('refusals', { code });

// Must be so, and the test hears of it.
export function check(fact, actual, expected = true) {
  assert.deepEqual(actual, expected, `${fact}: ${JSON.stringify(actual)}`);
  say({ fact, value: actual });
}

let chromiums;

// A browser of its own: nothing is shared with another.
export async function browser(options = {}) {
  chromiums ??= await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: [
      // Its sandbox does not work for root, as whom tests in containers run.
      ...(process.getuid() === 0 ? ['--no-sandbox'] : []),
      '--host-resolver-rules=MAP *.test 127.0.0.1',
      // Would keep a page of elsewhere from us before we could refuse it.
      '--disable-features=LocalNetworkAccessChecks',
    ],
  });
  const context = await chromiums.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  return context;
}

// A page that must break neither its own policy nor down.
export async function open(context, path = '/') {
  const page = await context.newPage();
  page.on('pageerror', (error) => assert.fail(`the page broke: ${error.message}`));
  page.on('console', (line) => {
    assert.ok(!/Content Security Policy|Trusted Type/i.test(line.text()), line.text());
  });
  await page.goto(path.startsWith('http') ? path : origin + path);
  return page;
}

export async function signIn(context, url) {
  const page = await open(context, url ?? (await link()));
  await page.click('#go');
  await page.waitForSelector('#board:not([hidden])');
  return page;
}

// The connection is in this state.
export const state = (page, name) => page.waitForSelector(`#live[data-state="${name}"]`);

// The runs in the feed, in its order, once there are so many.
export async function events(page, count) {
  const rows = page.locator('#events [data-testid="activity-item"]:not([hidden])');
  await rows.nth(count - 1).waitFor();
  return rows.evaluateAll((all) => all.map((row) => Number(row.querySelector('a').href.split('/').pop())));
}

// Runs one scenario; the last line says how it ended.
export async function play(scenario) {
  await scenario();
  await chromiums?.close();
  say({ done: true });
  process.exit(0);
}
