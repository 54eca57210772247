// The page itself: it fills and moves by itself, listens to the keyboard, and keeps still.

import { ask, browser, check, events, open, signIn, state, webhooks } from '../stage.mjs';

// From nothing to the first event, and on over a restart, without a reload and without a repeat.
async function the_feed_is_live_and_outlives_a_restart() {
  const page = await signIn(await browser());
  await page.waitForSelector('#empty:not([hidden])');
  check('one is told what to do', (await page.textContent('#hook')).endsWith('/webhooks/github'));
  await page.evaluate(() => (window.stillHere = true));

  await webhooks(1);
  check('the first event', await events(page, 1), [1]);
  check('no advice is needed any more', await page.isHidden('#empty'));
  await state(page, 'live');
  await webhooks(2, 3);
  check('more, newest first', await events(page, 3), [3, 2, 1]);
  await page.locator('#count-running', { hasText: '1' }).waitFor();
  await page.locator('#repos .repo', { hasText: 'acme/api' }).waitFor();

  await ask('stop');
  await state(page, 'degraded');
  await ask('start');
  await webhooks(4, 5);
  await state(page, 'live');
  check('what came while it was away', await events(page, 5), [5, 4, 3, 2, 1]);
  await webhooks(6);
  check('and what comes after', await events(page, 6), [6, 5, 4, 3, 2, 1]);
  check('on the page as it was', await page.evaluate(() => window.stillHere));
}

async function the_keyboard_is_enough() {
  const page = await signIn(await browser());
  await webhooks(1, 3);
  await events(page, 3);
  await state(page, 'live');
  const focused = () => page.evaluate(() => Number(document.activeElement.href?.split('/').pop()));
  const { keyboard } = page;

  await keyboard.press('?');
  await page.waitForSelector('#help[open]');
  check('every key is explained', await page.locator('#keys tr').count(), 10);
  await keyboard.press('Escape');
  await page.waitForSelector('#help', { state: 'hidden' });

  await keyboard.press('j');
  check('down', await focused(), 3);
  await keyboard.press('ArrowDown');
  check('further down', await focused(), 2);
  await keyboard.press('k');
  check('up', await focused(), 3);
  await keyboard.press('Shift+G');
  check('to the end', await focused(), 1);
  await keyboard.press('g');
  await keyboard.press('g');
  check('to the top', await focused(), 3);

  await keyboard.press('/');
  await keyboard.type('nothing like it? jp');
  await page.waitForSelector('#no-match:not([hidden])');
  check('letters are text in a field', await page.isHidden('#help'));
  await keyboard.press('Escape');
  await events(page, 3);

  await keyboard.press('p');
  await webhooks(4);
  await page.locator('#pause', { hasText: '1 new' }).waitFor();
  check('paused, the list stands', await events(page, 3), [3, 2, 1]);
  await keyboard.press('p');
  check('and goes on', await events(page, 4), [4, 3, 2, 1]);

  await keyboard.press('Shift+Q');
  await page.locator('#front-title', { hasText: 'Signed out' }).waitFor();
}

// What loads takes the room that was kept for it, on wide screens and narrow ones.
async function nothing_jumps_and_nothing_sticks_out() {
  for (const viewport of [{ width: 1280, height: 800 }, { width: 390, height: 844 }]) {
    const context = await browser({ viewport });
    const narrow = await signIn(context);
    await webhooks(1, 3);
    await events(narrow, 3);
    const page = await context.newPage();
    await page.addInitScript(() => {
      window.jumped = 0;
      const add = (list) => list.getEntries().forEach((entry) => (window.jumped += entry.value));
      new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true });
    });
    await page.goto(narrow.url());
    await events(page, 3);
    await state(page, 'live');
    const { jumped, wide } = await page.evaluate(
      () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() =>
        resolve({ jumped: window.jumped, wide: document.documentElement.scrollWidth - innerWidth })))),
    );
    check(`nothing jumps at ${viewport.width}`, jumped < 0.02);
    check(`nothing sticks out at ${viewport.width}`, wide <= 0);
    await context.close();
  }
}

// A browser has few connections for all its tabs: one that nobody sees gives its own back, and goes on
// where it was when somebody looks.
async function a_tab_that_nobody_sees_gives_its_connection_back() {
  const page = await signIn(await browser());
  await webhooks(1);
  await events(page, 1);
  await page.clock.install();
  await page.reload();
  await state(page, 'live');
  await events(page, 1);
  const turn = (hidden) =>
    page.evaluate((value) => {
      Object.defineProperty(document, 'hidden', { configurable: true, value });
      document.dispatchEvent(new Event('visibilitychange'));
    }, hidden);
  await turn(true);
  await page.clock.fastForward(31_000);
  await ask('no_streams');
  await webhooks(2, 3);
  check('nothing moves meanwhile', await events(page, 1), [1]);
  await turn(false);
  check('and nothing was missed', await events(page, 3), [3, 2, 1]);
}

// A name can be given again: the list has as many rows as the count says, and what happens moves the
// row of who has the name now.
async function two_repositories_of_one_name_are_two_rows() {
  const page = await signIn(await browser());
  await webhooks(1);
  await page.locator('#repos .row').waitFor();
  await ask('namesake', { run: 2 });
  await page.locator('#count-repositories', { hasText: '2' }).waitFor();
  const rows = page.locator('#repos .row:not([aria-hidden])');
  await page.reload();
  await rows.nth(1).waitFor();
  check('both are there', await rows.locator('.repo').allTextContents(), ['acme/api', 'acme/api']);
  await state(page, 'live');
  await ask('namesake', { run: 2, passed: true });
  await page.locator('#repos .dot[data-tone="good"]').waitFor();
  const tones = await rows.locator('.dot').evaluateAll((dots) => dots.map((dot) => dot.dataset.tone));
  check('one has moved', tones.sort(), ['good', 'waiting']);
}

// A text from outside is shown, not obeyed.
async function markup_in_an_event_is_text() {
  const page = await signIn(await browser());
  const name = '<img src=x onerror="document.title=\'broken\'"><b>CI</b>';
  await ask('publish', { data: { type: 'build:done', repo: 'acme/api', data: { title: name, url: 'javascript:alert(1)' } } });
  const row = page.locator('[data-testid="activity-item"]');
  await row.waitFor();
  check('it is text', await row.locator('.subject').textContent(), name);
  check('its link is none', await row.locator('a').count(), 0);
  check('the title stands', await page.title(), 'Campanile');
}

export default {
  the_feed_is_live_and_outlives_a_restart,
  the_keyboard_is_enough,
  nothing_jumps_and_nothing_sticks_out,
  a_tab_that_nobody_sees_gives_its_connection_back,
  markup_in_an_event_is_text,
  two_repositories_of_one_name_are_two_rows,
};
