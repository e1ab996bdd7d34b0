//! The HTTP and WebSocket front: attach, follow, flow control.
