// Tokens: at the handshake, on demand, and when they run out.

import assert from 'node:assert/strict';
import { PATIENCE_MS } from '../adapter.mjs';
import { seconds } from '../token.mjs';

/** Connects with a bad token and expects `name`; the client must forget the token. */
async function handshakeIsToldAndTokenRemoved({ create }, token, name) {
  const client = create({ token });
  const status = await client.connected();
  assert.equal(status.isAuthenticated, false);
  assert.equal(status.authError.name, name);
  assert.equal(status.authError.isBadToken, true);
  await client.events.removeAuthToken.next();
  assert.equal(client.tokens.token, null);
  assert.equal(client.authState, 'unauthenticated');
  return status.authError;
}

async function authenticateFails(client, token, name) {
  const error = await client.authenticate(token).then(() => assert.fail(`${name} expected`), (reason) => reason);
  assert.equal(error.name, name, error.message);
  assert.equal(client.authState, 'unauthenticated');
}

export const authentication = [
  {
    name: 'a good token at the handshake authenticates',
    async run({ create, sign }) {
      for (const alg of ['HS256', 'HS384', 'HS512']) {
        const client = create({ token: sign({ username: 'bob', exp: seconds(60) }, alg) });
        const status = await client.connected();
        assert.equal(status.isAuthenticated, true, alg);
        assert.equal(client.authState, 'authenticated');
        assert.equal(client.socket.authToken.username, 'bob');
        assert.notEqual(client.tokens.token, null);
      }
    },
  },
  {
    name: 'a token needs no expiry, and audience and issuer do not matter',
    async run({ create, sign }) {
      const client = create({ token: sign({ aud: 'somebody', iss: 'else' }) });
      assert.equal((await client.connected()).isAuthenticated, true);
    },
  },
  {
    name: 'an expired token at the handshake is reported and removed',
    async run(context) {
      const error = await handshakeIsToldAndTokenRemoved(context, context.sign({ exp: seconds(-5) }), 'AuthTokenExpiredError');
      assert.ok(Math.abs(new Date(error.expiry) - Date.now()) < PATIENCE_MS + 5000, error.expiry);
    },
  },
  {
    name: 'forged, malformed and unsigned tokens at the handshake are reported and removed',
    async run(context) {
      const good = context.sign({ exp: seconds(60) });
      const unsigned = `${Buffer.from('{"alg":"none","typ":"JWT"}').toString('base64url')}.${good.split('.')[1]}.`;
      for (const token of [`${good.slice(0, -3)}AAA`, 'not a token', unsigned]) {
        await handshakeIsToldAndTokenRemoved(context, token, 'AuthTokenInvalidError');
      }
    },
  },
  {
    name: 'a token that is not valid yet is reported and kept',
    async run({ create, sign, channel }) {
      const client = create({ token: sign({ nbf: seconds(600) }) });
      const { authError, isAuthenticated } = await client.connected();
      assert.equal(isAuthenticated, false);
      assert.equal(authError.name, 'AuthTokenNotBeforeError');
      assert.equal(authError.isBadToken, false);
      // Answers come in order: a removal would have arrived before this one.
      await client.publish(channel, 1);
      assert.equal(client.events.removeAuthToken.seen, 0);
    },
  },
  {
    name: 'a client authenticates and deauthenticates on demand',
    async run({ create, sign }) {
      const client = create();
      await client.connected();
      const status = await client.authenticate(sign({ username: 'eve', exp: seconds(60) }));
      assert.equal(status.isAuthenticated, true);
      assert.ok(status.authError == null);
      assert.equal(client.authState, 'authenticated');
      await client.deauthenticate();
      assert.equal(client.authState, 'unauthenticated');
      assert.equal(client.tokens.token, null);
    },
  },
  {
    name: 'bad tokens on demand are refused by name, also after a good one',
    async run({ create, sign }) {
      const client = create();
      await client.connected();
      await client.authenticate(sign({ exp: seconds(60) }));
      await authenticateFails(client, sign({ exp: seconds(-1) }), 'AuthTokenExpiredError');
      await authenticateFails(client, 'nonsense', 'AuthTokenInvalidError');
      await authenticateFails(client, '', 'AuthTokenInvalidError');
      await authenticateFails(client, { token: 1 }, 'AuthTokenError');
    },
  },
  {
    name: 'a subscription that waits for authentication is made after it',
    async run({ create, sign, channel }) {
      const client = create();
      await client.connected();
      const received = client.watch(channel, { waitForAuth: true });
      await client.publish(channel, 'too early');
      assert.equal(client.socket.isSubscribed(channel), false);
      await client.authenticate(sign({ exp: seconds(60) }));
      await client.subscribed(channel);
      await client.publish(channel, 'in time');
      assert.equal(await received.next(), 'in time');
    },
  },
  {
    name: 'a token that runs out is removed while the client goes on',
    async run({ create, sign, channel }) {
      const client = create({ token: sign({ exp: seconds(3) }) });
      assert.equal((await client.connected()).isAuthenticated, true);
      const received = await client.subscribe(channel);
      await client.events.removeAuthToken.next();
      assert.equal(client.authState, 'unauthenticated');
      await client.publish(channel, 'anyway');
      assert.equal(await received.next(), 'anyway');
    },
  },
];
