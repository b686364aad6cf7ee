// Search in pages that were opened from a folder: browsers start no worker from file:, so a frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      const waiting = []
      frame.hidden = true
      document.documentElement.append(frame)
      const inside = frame.contentWindow
      const document_ = frame.contentDocument
      this.postMessage = data => waiting.push(data)
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = document_.createElement("script")
      script.src = url
      script.onload = () => {
        this.postMessage = data => inside.dispatchEvent(new MessageEvent("message", { data }))
        waiting.splice(0).forEach(data => this.postMessage(data))
      }
      document_.documentElement.append(script)
      this.terminate = () => frame.remove()
    }
  }
}
