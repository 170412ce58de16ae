// Package codec speaks HTTP/1.1 and HTTP/2 in both roles, over any byte stream: a Server hands the requests of one client's
// connection to a handler, a Client sends requests to a backend over one connection. It knows nothing of routes, clusters or
// pools.
//
// Rules of the room:
//
//   - HTTP/1 start lines, targets and framing are judged by net/http's ReadRequest and ReadResponse, chunks are read by
//     net/http/httputil. What those let pass for the sake of old peers and another proxy may read otherwise (bare CR or LF,
//     folded lines, both lengths at once) is refused before: a message that can be read in two ways is not passed on.
//   - HTTP/2 is mesh/h2.
//   - Bodies are pulled: who does not read holds the sender back, through both connections, and nothing is collected.
//   - What is known when a message is written is written once: header, first piece and end leave together if they are there.
//   - Whoever pulls a body closes it. Every goroutine of a connection has ended when its Run has returned or its Done is closed.
package codec
