package codec

import (
	"context"
	"net"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Client is one connection to a backend. Its methods may be called concurrently.
type Client interface {
	// Reserve promises the caller one request, and returns whether there is room: the caller must then call RoundTrip or
	// Unreserve. An HTTP/1 connection carries one at a time; it notices here if the backend has closed it meanwhile.
	Reserve() bool
	// Unreserve gives back what Reserve promised.
	Unreserve()
	// Available returns how many requests could be reserved now; zero for ever once the connection is of no more use, which
	// Draining tells apart.
	Available() int
	// Active returns how many requests are reserved or under way.
	Active() int
	// Draining tells whether the connection takes no new requests any more.
	Draining() bool

	// RoundTrip sends a request that was reserved, and returns its response once its header has come. It takes req.Body over and
	// closes it; nothing else of req is used after it has returned. inform, if not nil, is called for each response of status
	// 1xx that comes before, but for 100 and 101; the response is valid until inform returns.
	//
	// The request ends when ctx does, until the response's Body has returned io.EOF or was closed; a response without Body
	// ended already. The caller must close the response's Body, or its Tunnel. The error is an *Error.
	RoundTrip(ctx context.Context, req *message.Request, inform func(*message.Response)) (*message.Response, error)

	// Protocol is HTTP11 or HTTP2.
	Protocol() message.Protocol
	// Shutdown takes no new requests, and closes the connection when the last has ended.
	Shutdown()
	// Close ends the connection and what is under way at once.
	Close()
	// Done is closed when the connection has ended, and all its goroutines.
	Done() <-chan struct{}
	// Err returns why the connection has ended; nil while it has not, and after an orderly end.
	Err() error
	// LocalAddr and RemoteAddr are the connection's.
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}

// NewClient returns a connection to a backend over nc, which it owns and closes. With HTTP2 it says so at once, without asking
// (prior knowledge, or what ALPN has found); else it speaks HTTP/1.1.
func NewClient(nc net.Conn, proto message.Protocol, cfg *ClientConfig) Client {
	nc = quiet(nc)
	if proto == message.HTTP2 {
		return newClient2(h2.NetTransport(nc), cfg.withDefaults())
	}
	return newClient1(nc, cfg.withDefaults())
}
