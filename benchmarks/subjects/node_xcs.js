// An app server on node-xcs, as its README has it: acknowledges what comes, or sends.

'use strict';

const fs = require('fs');
const wanted = JSON.parse(process.env.BENCHMARK);
// It knows only Google's own server.
const constants = require('node-xcs/google/Constants');
constants.FCM_SEND_ENDPOINT = 'localhost';
constants.FCM_SEND_PRODUCTION_PORT = wanted.port;
const { Sender, Message } = require('node-xcs');

const SAMPLE = 16;
const waits = [];
let sent = 0;
let answered = 0;

function sendNext() {
  const number = sent++;
  const since = number % SAMPLE ? 0 : performance.now();
  const message = new Message(String(number).padStart(8, '0')).addData('text', wanted.text).build();
  xcs.sendNoRetry(message, 'device-' + String(number % 100).padStart(2, '0'), () => {
    if (since) waits.push((performance.now() - since) / 1000);
    answered++;
    if (sent < wanted.down) sendNext();
    if (answered === wanted.down) {
      fs.writeFileSync(wanted.report + '.part', JSON.stringify({ answered, failed: 0, waits }));
      fs.renameSync(wanted.report + '.part', wanted.report);
    }
  });
}

const xcs = new Sender('123456789', 'benchmark-server-key');
xcs.on('message', () => {});
xcs.on('error', (error) => console.error(error));
xcs.on('connected', () => {
  while (sent < Math.min(wanted.down, 100)) sendNext();
});
// Not xcs.start(): with the xmpp.js that npm installs today it throws, for want of socket.setTimeout.
xcs.client.start().catch((error) => { console.error(error); process.exit(1); });
process.on('SIGTERM', () => process.exit(0));
