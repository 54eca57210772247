// Takes the secret from behind the `#`, away from the address bar and the history, and posts it when
// somebody presses the button. Whatever only looks at the link (a preview, a prefetch) leaves it good.

const words = document.getElementById('words');
const button = document.getElementById('go');

const NOT_HERE = new Set(['wrong_host', 'origin_forbidden']);

const secret = location.hash.slice(1);
history.replaceState(null, '', location.pathname);

async function signIn() {
  button.disabled = true;
  words.textContent = 'Signing in.';
  try {
    const answer = await fetch('/api/auth/sign-in', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ secret }),
    });
    if (answer.status === 204) {
      location.replace('/');
      return;
    }
    const refusal = await answer.json().catch(() => null);
    if (NOT_HERE.has(refusal?.error?.code)) {
      words.textContent = 'This gateway does not go by this name: open the link under the address that it was printed with.';
      return;
    }
    const message = refusal?.error?.message ?? `the gateway answered ${answer.status}`;
    words.textContent = `That did not work: ${message}.`;
    // A link that is used up stays so; anything else may pass.
    button.disabled = refusal?.error?.code === 'link_invalid';
  } catch {
    words.textContent = 'The gateway does not answer. Try again.';
    button.disabled = false;
  }
  if (!button.disabled) button.focus();
}

if (secret) {
  words.textContent = 'This link signs this browser in as the operator of the gateway.';
  button.disabled = false;
  button.addEventListener('click', signIn);
  button.focus();
} else {
  words.textContent = 'This address signs in only with all of its link: open the link again, or make a new one.';
}
