// What an operator does to a client, seen by the client.

import assert from 'node:assert/strict';

export const operators = [
  {
    name: 'a kick-out ends one subscription and says why',
    async run({ create, channel, operator }) {
      const client = create();
      const { id } = await client.connected();
      const other = await client.subscribe(`${channel}-other`);
      const received = await client.subscribe(channel);
      await operator.kick(id, channel, 'bye');
      const kicked = await client.events.kickOut.next();
      assert.equal(kicked.channel, channel);
      assert.equal(kicked.message, 'bye');
      assert.equal(client.socket.isSubscribed(channel), false);
      await client.publish(channel, 'not for me');
      await client.publish(`${channel}-other`, 'for me');
      assert.equal(await other.next(), 'for me');
      assert.equal(received.seen, 0);
      // Nothing stops it from subscribing again.
      client.socket.subscribe(channel);
      await client.subscribed(channel);
    },
  },
  {
    name: 'a kick-out without a channel ends every subscription',
    async run({ create, channel, operator }) {
      const client = create();
      const { id } = await client.connected();
      await client.subscribe(`${channel}1`);
      await client.subscribe(`${channel}2`);
      await operator.kick(id, undefined, 'all');
      const names = [await client.events.kickOut.next(), await client.events.kickOut.next()].map((item) => item.channel);
      assert.deepEqual(names.sort(), [`${channel}1`, `${channel}2`]);
      assert.equal(client.state, 'open');
    },
  },
  {
    name: 'a token set by an operator authenticates, here and on the next connection',
    async run({ create, operator }) {
      const client = create();
      const { id } = await client.connected();
      await operator.setToken(id, { username: 'bob', channels: [1, 2] });
      const { signedAuthToken } = await client.events.authenticate.next();
      assert.equal(client.authState, 'authenticated');
      const token = client.socket.authToken;
      assert.equal(token.username, 'bob');
      assert.deepEqual(token.channels, [1, 2]);
      assert.equal(token.exp - token.iat, 86_400);
      const next = create({ token: signedAuthToken });
      assert.equal((await next.connected()).isAuthenticated, true);
    },
  },
  {
    name: 'a token removed by an operator is forgotten by the client',
    async run({ create, sign, operator }) {
      const client = create({ token: sign({ username: 'bob' }) });
      const { id, isAuthenticated } = await client.connected();
      assert.equal(isAuthenticated, true);
      await operator.removeToken(id);
      await client.events.removeAuthToken.next();
      assert.equal(client.authState, 'unauthenticated');
      assert.equal(client.tokens.token, null);
    },
  },
  {
    name: 'a client disconnected by an operator sees code and reason',
    async run({ create, operator }) {
      for (const code of [1000, 4100, 4500]) {
        const client = create();
        const { id } = await client.connected();
        await operator.disconnect(id, code, 'maintenance');
        const seen = await client.events.disconnect.next();
        assert.equal(seen.code, code);
        assert.equal(seen.reason, 'maintenance');
      }
    },
  },
  {
    name: 'a client disconnected with 4100 comes back and resubscribes',
    async run({ create, channel, operator }) {
      const client = create({ autoReconnect: true, autoReconnectOptions: { initialDelay: 50, randomness: 50 } });
      const { id } = await client.connected();
      const received = await client.subscribe(channel);
      await operator.disconnect(id, 4100, '');
      assert.equal((await client.events.disconnect.next()).code, 4100);
      await client.connected();
      await client.subscribed(channel);
      await client.publish(channel, 'back');
      assert.equal(await received.next(), 'back');
    },
  },
];
