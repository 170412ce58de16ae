package zds

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"time"
)

// Errors of Server.Add.
var (
	// ErrNoProxy says that no proxy took the pod before the context ended.
	ErrNoProxy = errors.New("no node proxy is connected")
	// ErrRefused wraps what a proxy answered; it goes on trying by itself.
	ErrRefused = errors.New("node proxy refused the pod")
)

// Pod is what a proxy is told of a pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string
	// NetNS is the pod's network namespace. If nil, the pod is only named in snapshots, so that a proxy which serves it
	// goes on doing so. The server duplicates the descriptor; the caller keeps its own.
	NetNS *os.File
}

// Config configures a Server.
type Config struct {
	// AckTimeout is how long a proxy may take to answer one request before its connection is closed; 5 s if zero.
	AckTimeout time.Duration
	// Observe, if set, hears of connections that come and go, and of every answer. It must not block or call the Server.
	Observe func(Event)
	// Logger must be set.
	Logger *slog.Logger
}

// Event is something that a Server noticed.
type Event struct {
	// Connected is the number of proxies that said hello and are still there.
	Connected int
	// UID is the pod that a proxy answered for; empty for a connection that came or went.
	UID string
	// Err is nil if the proxy serves the pod.
	Err error
}

// Server serves node proxies. Its methods may be called at once.
type Server struct{}

// NewServer returns a server that knows no pods.
func NewServer(c Config) *Server { return &Server{} }

// Listen makes the socket at path, in place of one that is there, in a way that a connecting proxy never finds none. The
// listener does not remove it when closed.
func Listen(path string) (*net.UnixListener, error) { return nil, errors.New("zds: not listening") }

// Serve accepts proxies until the context ends; it closes the listener and every connection, waits for their goroutines
// and returns nil. The pods stay known.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error { return nil }

// Add makes the pod known and waits until the newest proxy serves it. If the proxy goes away meanwhile, the next one is
// asked, or the next that comes. The pod stays known when Add fails, until Delete. The same UID with another NetNS
// replaces the former.
func (s *Server) Add(ctx context.Context, p Pod) error { return nil }

// Set makes the pod known, without telling a connected proxy; a later snapshot names it.
func (s *Server) Set(p Pod) error { return nil }

// Delete forgets the pod and waits until every proxy answered, or went away.
func (s *Server) Delete(ctx context.Context, uid string) error { return nil }

// Connected returns the number of proxies that said hello and are still there.
func (s *Server) Connected() int { return 0 }
