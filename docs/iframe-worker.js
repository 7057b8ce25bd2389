// Browsers refuse web workers to pages that are opened from disk: there the search runs in a frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source !== this.inside) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      const page = this.inside.document;
      page.open();
      page.write(`<!doctype html><body><script>
        window.postMessage = (data) => parent.postMessage(data, "*");
        window.importScripts = (...urls) => urls.reduce((done, url) => done.then(() =>
          new Promise((resolve, reject) => {
            const script = document.createElement("script");
            Object.assign(script, { src: url, onload: resolve, onerror: reject });
            document.body.appendChild(script);
          })), Promise.resolve());
      <\/script><script src="${url}"><\/script></body>`);
      page.close();
    }
    postMessage(data) {
      this.inside.dispatchEvent(new MessageEvent("message", { data, source: window }));
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
