// Handshake, life signs, batches, closes.

import assert from 'node:assert/strict';
import { PATIENCE_MS } from '../adapter.mjs';

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function staysConnectedWhileIdle({ create, heartbeat, channel }, options) {
  const client = create(options);
  await client.connected();
  const received = await client.subscribe(channel);
  await wait(heartbeat.pongTimeoutMs + 2 * heartbeat.pingIntervalMs);
  assert.equal(client.state, 'open');
  assert.equal(client.events.disconnect.seen, 0);
  await client.publish(channel, 'still here');
  assert.equal(await received.next(), 'still here');
}

export const connections = [
  {
    name: 'the handshake gives an id and the ping timeout, without authentication',
    async run({ create, heartbeat }) {
      const [one, two] = [create(), create()];
      const [first, second] = [await one.connected(), await two.connected()];
      assert.equal(typeof first.id, 'string');
      assert.notEqual(first.id, second.id);
      assert.equal(first.pingTimeout, heartbeat.pongTimeoutMs);
      assert.equal(first.isAuthenticated, false);
      assert.equal(first.authError, undefined);
      assert.equal(one.authState, 'unauthenticated');
    },
  },
  {
    name: 'a query and a missing last slash do not matter',
    async run({ create }) {
      const client = create({ path: '/socketcluster', query: { a: 'b c', list: ['1', '2'] }, timestampRequests: true });
      await client.connected();
    },
  },
  {
    name: 'an idle client lives on pings for longer than the ping timeout',
    run: (context) => staysConnectedWhileIdle(context),
  },
  {
    name: 'an idle client that speaks protocol version 1 lives on the same endpoint',
    // v14 speaks nothing else, which the case above has shown.
    runs: ({ legacy }) => !legacy,
    run: (context) => staysConnectedWhileIdle(context, { protocolVersion: 1 }),
  },
  {
    name: 'a batch around the handshake is taken apart in order',
    async run({ create, channel, library }) {
      const client = create(library.legacy ? { pubSubBatchDuration: 50 }
        : { batchOnHandshake: true, batchOnHandshakeDuration: 200 });
      const queues = [1, 2, 3, 4].map((n) => client.watch(`${channel}${n}`, { batch: true }));
      await client.connected();
      const acknowledged = Promise.all([1, 2, 3, 4].map((n) => client.publish(`${channel}${n}`, n)));
      await Promise.all([1, 2, 3, 4].map((n) => client.subscribed(`${channel}${n}`)));
      await acknowledged;
      await client.publish(`${channel}4`, 'end');
      await queues[3].until((data) => data === 'end');
    },
  },
  {
    name: 'packets collected by startBatching are all executed in order',
    runs: ({ legacy }) => !legacy,
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      const received = await client.subscribe(channel);
      client.socket.startBatching();
      const acknowledged = Array.from({ length: 100 }, (_, n) => client.publish(channel, n));
      await Promise.all(acknowledged);
      client.socket.stopBatching();
      for (let n = 0; n < 100; n += 1) assert.equal(await received.next(), n);
    },
  },
  {
    name: 'an unknown procedure is answered at once with an error',
    async run({ create }) {
      const client = create({ ackTimeout: PATIENCE_MS });
      await client.connected();
      const error = await client.call('no such procedure', { a: 1 }).then(
        () => assert.fail('it was answered without an error'), (reason) => reason);
      assert.notEqual(error.name, 'TimeoutError');
      assert.equal(typeof error.message, 'string');
    },
  },
  {
    name: 'an unknown event is ignored',
    async run({ create, channel }) {
      const client = create();
      await client.connected();
      client.transmit('no such event', [1, 2, 3]);
      client.transmit('#no-such-event', null);
      await client.publish(channel, 1);
      assert.equal(client.state, 'open');
    },
  },
  {
    name: 'a message beyond the limit closes its sender alone with 1009',
    async run({ create, channel }) {
      const [big, other] = [create(), create()];
      await Promise.all([big.connected(), other.connected()]);
      const received = await other.subscribe(channel);
      big.publishOneWay(channel, 'x'.repeat(1 << 20));
      const { code } = await big.events.disconnect.next();
      assert.equal(code, 1009);
      await other.publish(channel, 'small');
      assert.equal(await received.next(), 'small');
    },
  },
  {
    name: 'a client may leave and come back, and its calls go on counting',
    async run({ create, channel }) {
      const client = create();
      const first = await client.connected();
      const received = await client.subscribe(channel);
      client.disconnect(1000, 'bye');
      assert.equal((await client.events.disconnect.next()).code, 1000);
      client.socket.connect();
      const second = await client.connected();
      assert.notEqual(first.id, second.id);
      await client.subscribed(channel);
      await client.publish(channel, 'again');
      assert.equal(await received.next(), 'again');
    },
  },
];
