// Coming in by a link, and going out again.

import { browser, check, link, open, origin, refusals, signIn, state, webhooks } from '../stage.mjs';

const words = (page, text) => page.locator('#words', { hasText: text }).waitFor();

// The link's page holds the secret only as long as it is needed, and one browser gets in.
async function a_link_works_once() {
  const url = await link();
  const first = await browser();
  const page = await open(first, url);
  await page.waitForSelector('#go:not([disabled])');
  check('the secret leaves the address bar', page.url(), `${origin}/sign-in`);
  check('one can press Enter at once', await page.evaluate(() => document.activeElement.id), 'go');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#board:not([hidden])');
  await page.goBack();
  check('nor does the history keep it', page.url().includes('#'), false);

  const [cookie] = await first.cookies();
  const { name, httpOnly, sameSite, path } = cookie;
  check('the cookie', { name, httpOnly, sameSite, path }, { name: 'campanile', httpOnly: true, sameSite: 'Lax', path: '/' });

  const second = await browser();
  const late = await open(second, url);
  await late.click('#go');
  await words(late, 'used before');
  check('a used link has no button left', await late.isDisabled('#go'));
  check('nobody else got a cookie', await second.cookies(), []);
  await late.goto(origin);
  await late.waitForSelector('#front:not([hidden])');
}

// Mail scanners, chats and browsers look at links; only a person uses them up.
async function looking_at_a_link_leaves_it_good() {
  const url = await link();
  const scanner = await browser();
  for (let i = 0; i < 3; i += 1) check('the page is there', (await scanner.request.get(url)).status(), 200);
  const preview = await open(scanner, url);
  await preview.waitForSelector('#go:not([disabled])');
  await preview.close();
  const chat = await scanner.newPage();
  const fetched = chat.waitForResponse(/sign-in/);
  await chat.setContent(`<link rel="prefetch" href="${url}">`);
  check('a prefetch finds it too', (await fetched).status(), 200);
  check('nobody is signed in by that', await scanner.cookies(), []);

  const page = await signIn(await browser(), url);
  check('the person is', page.url(), `${origin}/`);
}

async function a_link_without_its_secret_explains_itself() {
  const page = await open(await browser(), '/sign-in');
  await words(page, 'open the link again');
  check('there is nothing to press', await page.isDisabled('#go'));
  await page.goto(`${origin}/sign-in#${'A'.repeat(43)}`);
  await page.reload();
}

// All tabs of a browser end with its session, also what they have open.
async function signing_out_ends_every_tab() {
  const context = await browser();
  const page = await signIn(context);
  await webhooks(1);
  const other = await open(context);
  await Promise.all([state(page, 'live'), state(other, 'live')]);
  await page.waitForSelector('[data-testid="activity-item"]');
  await other.waitForSelector('[data-testid="activity-item"]');

  await page.click('#sign-out');
  await page.locator('#front-title', { hasText: 'Signed out' }).waitFor();
  await other.locator('#front-title', { hasText: 'The session is over' }).waitFor();
  check('nothing is left to see', await other.locator('[data-testid="activity-item"]').count(), 0);
  check('the cookie is gone', await context.cookies(), []);
  await page.reload();
  await page.waitForSelector('#front:not([hidden])');
  check('nobody knocked with a dead session', await refusals('session_over'), 0);
}

export default {
  a_link_works_once,
  looking_at_a_link_leaves_it_good,
  a_link_without_its_secret_explains_itself,
  signing_out_ends_every_tab,
};
