// A device on npm's eufy-security-client, which reads data that is not encrypted:
// connects as a device that has checked in, and prints what it gets.
//
//     node eufy_device.js NODE_MODULES MCS_PORT ANDROID_ID SECURITY_TOKEN
"use strict";
const path = require("path");

// By its file: the package does not export it by a name.
const [modules, ...identity] = process.argv.slice(2);
const {PushClient} = require(path.join(modules, "eufy-security-client/build/push/client.js"));

async function main(port, androidId, securityToken) {
  const client = await PushClient.init({androidId, securityToken});
  client.HOST = "127.0.0.1";
  client.PORT = Number(port);
  client.on("connect", () => console.log(JSON.stringify({connected: true})));
  client.on("message", (message) => console.log(JSON.stringify({received: message})));
  client.connect();
}

main(...identity);
