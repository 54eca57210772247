// Pages of other sites, and other doors, that try to use the session of a browser that is signed in.

import { browser, check, link, open, origin, port, refusals, signIn } from '../stage.mjs';

// A page of another site; nobody serves it, the browser is told what it holds.
async function pageOf(context, site) {
  await context.route(`${site}/page`, (route) => route.fulfill({ contentType: 'text/html', body: '<title>elsewhere</title>' }));
  return open(context, `${site}/page`);
}

// Another site gets no cookie sent along; another port of the same machine does, and is refused by
// its origin all the same.
async function other_sites_can_do_nothing() {
  const context = await browser();
  await signIn(context);
  const token = `${origin}/api/auth/token`;
  const stream = `${origin}/api/events/stream?channels=org:acme`;
  const socket = `${origin.replace('http', 'ws')}/connection/websocket`;
  for (const site of ['http://evil.test', 'http://127.0.0.1:1']) {
    const page = await pageOf(context, site);
    let before = await refusals('origin_forbidden');
    // What the page learns, and whether it was us who refused.
    const tried = async (what, expected, script, url) => {
      check(`${site} ${what}`, await page.evaluate(script, url), expected);
      const after = await refusals('origin_forbidden');
      check('it was refused for its origin', after - before, 1);
      before = after;
    };
    const post = (url) => fetch(url, { method: 'POST', credentials: 'include' }).then(({ status }) => status, () => 'error');
    await tried('posts and reads nothing', 'error', post, token);
    const blind = (url) => fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include' }).then(({ type }) => type);
    await tried('posts blindly', 'opaque', blind, token);
    const listen = (url) =>
      new Promise((resolve) => {
        const source = new EventSource(url, { withCredentials: true });
        source.onopen = () => resolve('open');
        source.onerror = () => resolve('error');
      });
    await tried('hears nothing', 'error', listen, stream);
    const connect = (url) => new Promise((resolve) => (new WebSocket(url).onclose = ({ code }) => resolve(code)));
    await tried('opens no socket', 1006, connect, socket);

    const answer = page.waitForResponse(token);
    await page.evaluate((url) => {
      const form = document.createElement('form');
      Object.assign(form, { method: 'post', action: url });
      document.body.append(form);
      form.submit();
    }, token);
    check(`${site} submits a form`, (await answer).status(), 403);
  }
}

// Sockets want a token; the cookie opens none.
async function the_cookie_alone_opens_no_socket() {
  const page = await signIn(await browser());
  const connect = (token) =>
    page.evaluate(
      ([url, params]) =>
        new Promise((resolve) => {
          const socket = new WebSocket(url);
          socket.onopen = () => socket.send(JSON.stringify({ id: 1, connect: params }));
          socket.onmessage = ({ data }) => resolve(typeof JSON.parse(data).connect.client);
          socket.onclose = ({ code }) => resolve(code);
        }),
      [`${origin.replace('http', 'ws')}/connection/websocket`, token ? { token } : {}],
    );
  check('without a token', await connect(null), 3501);
  const token = await page.evaluate(async () => (await (await fetch('/api/auth/token', { method: 'POST' })).json()).token);
  check('with the token that the session gives', await connect(token), 'string');
}

// A name of somebody else's that leads to this address makes their page and us one origin.
async function another_name_of_the_address_gets_nothing() {
  const context = await browser();
  await signIn(context);
  const [cookie] = await context.cookies();
  const rebound = `http://rebound.test:${port}`;
  const page = await open(context, rebound);
  const me = () => page.evaluate(async () => (await fetch('/api/auth/me')).status);
  check('the browser has no cookie for it', await me(), 401);
  await context.addCookies([{ name: cookie.name, value: cookie.value, url: rebound }]);
  check('and we take none under that name', await me(), 421);
  const stream = () => page.evaluate(async () => (await fetch('/api/events/stream?channels=org:acme')).status);
  check('not for a stream either', await stream(), 421);

  const url = await link();
  const wrong = await open(await browser(), url.replace(origin, rebound));
  await wrong.click('#go');
  await wrong.locator('#words', { hasText: 'does not go by this name' }).waitFor();
  const right = await signIn(await browser(), url);
  check('the link was not used up', right.url(), `${origin}/`);
}

export default {
  other_sites_can_do_nothing,
  the_cookie_alone_opens_no_socket,
  another_name_of_the_address_gets_nothing,
};
