// An app on a device: does what the test says, and tells it what happens.
const control = "CONTROL";
const tell = (event, fields) =>
  fetch(control + "/event", {method: "POST", body: JSON.stringify({event, ...fields})});
const outcome = (event, value) => tell(event, {value, error: chrome.runtime.lastError?.message});

chrome.gcm.onMessage.addListener((message) => tell("message", {message}));
chrome.gcm.onMessagesDeleted.addListener(() => tell("messagesDeleted"));
chrome.gcm.onSendError.addListener((error) => tell("sendError", {error}));

async function obey() {
  for (;;) {
    const order = await (await fetch(control + "/order")).json();
    try {
      if (order.register) chrome.gcm.register(order.register, (token) => outcome("registered", token));
      if (order.send) chrome.gcm.send(order.send, (id) => outcome("sent", id));
    } catch (error) {
      tell("refused", {error: String(error)});
    }
  }
}
obey();
