package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ambit-mesh/ambit/deploy/samples/greeter"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

// ServeConfig says what a server offers.
type ServeConfig struct {
	// Host is the address to listen on; empty is every address of both families.
	Host string
	// Ports overrides ports by their default (tests on loopback use port 0); nil keeps all.
	Ports map[int]int
	// DripTo, if not empty, is an echo server that Drip sends to as long as the server runs, every DripEvery.
	DripTo    string
	DripEvery time.Duration
	// Grace is how long connections that are open when ctx ends may go on; those over HTTP and gRPC are cut at once.
	Grace time.Duration
	// Listening, if not nil, is called once all listeners are open, with their addresses by default port.
	Listening func(map[int]net.Addr)
	Logger    *slog.Logger
}

// Serve offers all protocols until ctx ends, then closes its ports at once and every connection after the grace, and returns nil.
func Serve(ctx context.Context, config ServeConfig) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	me := whoami.Me()
	tool := newTool(me)
	listeners := map[int]net.Listener{}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	addrs := map[int]net.Addr{}
	for _, port := range []int{PortHTTP, PortEcho, PortGreeter, PortTool, PortGRPC} {
		actual := port
		if p, ok := config.Ports[port]; ok {
			actual = p
		}
		l, err := net.Listen("tcp", net.JoinHostPort(config.Host, fmt.Sprint(actual)))
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		listeners[port], addrs[port] = l, l.Addr()
	}
	if config.Listening != nil {
		config.Listening(addrs)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var dripped drips
	if config.DripTo != "" {
		wg.Go(func() {
			Drip(ctx, config.DripTo, orDefault(config.DripEvery, 200*time.Millisecond), dripped.count)
		})
	}
	failed := make(chan error, len(listeners))
	wg.Go(func() { failed <- serveHTTP(ctx, listeners[PortHTTP], me, &dripped) })
	wg.Go(func() { failed <- serveGRPC(ctx, listeners[PortGRPC]) })
	wg.Go(func() { failed <- serveTCP(ctx, listeners[PortEcho], config.Grace, echo) })
	wg.Go(func() { failed <- serveTCP(ctx, listeners[PortTool], config.Grace, tool.handle) })
	wg.Go(func() {
		failed <- serveTCP(ctx, listeners[PortGreeter], config.Grace, func(ctx context.Context, conn *net.TCPConn) {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			greeter.Handle(conn, me)
		})
	})
	config.Logger.Info("serving", "pod", me.Pod, "node", me.Node)
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// drips counts what Drip sent.
type drips struct{ ok, failed atomic.Int64 }

func (d *drips) count(ok bool) {
	if ok {
		d.ok.Add(1)
	} else {
		d.failed.Add(1)
	}
}

func serveHTTP(ctx context.Context, l net.Listener, me whoami.Who, dripped *drips) error {
	mux := http.NewServeMux()
	mux.Handle("/", whoami.Handler(me))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/drips", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"ok":%d,"failed":%d}`+"\n", dripped.ok.Load(), dripped.failed.Load())
	})
	var asked atomic.Int64
	mux.HandleFunc(PathFlaky, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1)%2 == 1 {
			http.Error(w, "every other request fails", http.StatusServiceUnavailable)
			return
		}
		whoami.Handler(me).ServeHTTP(w, r)
	})
	mux.HandleFunc(PathSlow, func(w http.ResponseWriter, r *http.Request) {
		if pause(r.Context(), time.Second) {
			whoami.Handler(me).ServeHTTP(w, r)
		}
	})
	mux.HandleFunc(PathBack, back)
	mux.HandleFunc(PathSay, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Query().Get("text")) })
	mux.HandleFunc(PathGate, func(w http.ResponseWriter, r *http.Request) {
		pass := r.Header.Get(FieldPass)
		if pass == "" {
			http.Error(w, "no "+FieldPass, StatusNoPass)
			return
		}
		w.Header().Set("authorization", pass)
	})
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Handler: mux, ReadHeaderTimeout: DefaultTimeout, Protocols: &protocols}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}

func serveGRPC(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) && ctx.Err() == nil {
		return fmt.Errorf("serve grpc: %w", err)
	}
	return nil
}

// serveTCP calls handle for each connection, which owns it, until ctx ends; it then closes the port as soon as nobody waits
// there, and waits for the connections, whose context ends after the grace.
func serveTCP(ctx context.Context, l net.Listener, grace time.Duration, handle func(context.Context, *net.TCPConn)) error {
	listener := l.(*net.TCPListener)
	open, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Now()) })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := listener.AcceptTCP()
		switch {
		case err == nil:
			wg.Go(func() { handle(open, conn) })
		case ctx.Err() == nil:
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		default:
			waiting, err := closePort(listener)
			for _, conn := range waiting {
				wg.Go(func() { handle(open, conn) })
			}
			timer := time.AfterFunc(grace, cut)
			wg.Wait()
			timer.Stop()
			if err != nil {
				return fmt.Errorf("close %s: %w", l.Addr(), err)
			}
			return nil
		}
	}
}

// closePort closes a port and returns the connections that the kernel had taken for it until then: closing resets those that nobody
// has accepted. An expired deadline keeps Accept from looking, so that here the kernel is asked itself, until the moment before.
func closePort(l *net.TCPListener) ([]*net.TCPConn, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	var files []int
	controlled := raw.Control(func(fd uintptr) {
		for {
			file, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch {
			case err == nil:
				files = append(files, file)
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			default:
				return // nobody waits
			}
		}
	})
	err = errors.Join(controlled, l.Close())
	var conns []*net.TCPConn
	for _, file := range files {
		f := os.NewFile(uintptr(file), "")
		conn, failed := net.FileConn(f)
		if err = errors.Join(err, failed, f.Close()); failed == nil {
			conns = append(conns, conn.(*net.TCPConn))
		}
	}
	return conns, err
}

// echo returns what it gets and ends when the client has ended. A client that is silent holds no buffer of ours: the kernel
// moves the bytes.
func echo(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := io.Copy(conn, conn); err == nil {
		_ = conn.CloseWrite()
	}
}
