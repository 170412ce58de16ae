// Package admin serves what people and tools look at: the state of the proxy on loopback, metrics, and readiness.
//
// Rule of the room: it shows what it is given and changes nothing but the log level; whatever it is given must be safe to
// look at while the proxy works.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/config"
)

// Timeouts of HTTP requests.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = time.Minute
)

// Admin is what the loopback endpoint shows. All fields are required; the functions may be called concurrently.
type Admin struct {
	// Dump returns what /config_dump shows, to be encoded as JSON.
	Dump func() any
	// Connections returns what /connections shows.
	Connections func() any
	// Level is the log's level, which /logging changes; Initial is what `reset` goes back to.
	Level   *slog.LevelVar
	Initial slog.Level
	// Quit begins the end of the process, as SIGTERM does. It must not block.
	Quit    func()
	Version string
}

// Handler serves the endpoint.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	mux.HandleFunc("GET /config_dump", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Dump()) })
	mux.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.Connections()) })
	mux.HandleFunc("/logging", a.logging)
	mux.HandleFunc("POST /quitquitquit", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "shutdown now")
		a.Quit()
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func (a *Admin) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><title>ztunnel</title><h1>ztunnel %s</h1><ul>\n", html.EscapeString(a.Version))
	for _, p := range []struct{ path, about string }{
		{"config_dump", "what the proxy knows, as JSON"},
		{"connections", "open connections, as JSON"},
		{"logging", "log level; POST ?level=debug changes it, ?level=reset goes back"},
		{"debug/pprof/", "profiles of the process"},
	} {
		fmt.Fprintf(w, "<li><a href=\"%s\">/%s</a>: %s\n", p.path, p.path, p.about)
	}
	fmt.Fprintln(w, "<li>POST /quitquitquit: end, as after SIGTERM\n</ul>")
}

// logging shows the level, and changes it on POST. A list such as istioctl sends ("ztunnel=debug") is taken by its last
// entry, since there is one level.
func (a *Admin) logging(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.Method == http.MethodPost {
		if query.Has("reset") {
			a.Level.Set(a.Initial)
		}
		for item := range strings.SplitSeq(query.Get("level"), ",") {
			text := item[strings.LastIndexByte(item, '=')+1:]
			if text == "" {
				continue
			}
			level := a.Initial
			if text != "reset" {
				var err error
				if level, err = config.ParseLevel(text); err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
			}
			a.Level.Set(level)
		}
	} else if r.Method != http.MethodGet {
		http.Error(w, "GET shows the level, POST ?level= changes it", http.StatusMethodNotAllowed)
		return
	}
	level := strings.ToLower(a.Level.Level().String())
	if a.Level.Level() >= config.LevelOff {
		level = "off"
	}
	fmt.Fprintf(w, "current log level is %s\n", level)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		// The status has gone out; the client sees that the JSON does not end.
		io.WriteString(w, "\n"+err.Error()+"\n")
	}
}

// Readiness tells whether the proxy is ready, and if not, what is missing. Its methods may be called concurrently; the zero
// value is ready.
type Readiness struct {
	mu      sync.Mutex // guards pending
	pending map[string]func() bool
}

// Await makes readiness wait until done returns true. Once it has, it is not asked again.
func (r *Readiness) Await(name string, done func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil {
		r.pending = map[string]func() bool{}
	}
	r.pending[name] = done
}

// Missing lists what is waited for, sorted; nothing means ready.
func (r *Readiness) Missing() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var missing []string
	for name, done := range r.pending {
		if done() {
			delete(r.pending, name)
		} else {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	return missing
}

// Handler serves GET /healthz/ready: 200 or, with a list, 500.
func (r *Readiness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if missing := r.Missing(); len(missing) > 0 {
			http.Error(w, "not ready, pending: "+strings.Join(missing, ", "), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

// Server serves HTTP on some listeners.
type Server struct {
	http *http.Server
	lns  []net.Listener
}

// Listen opens listeners for a handler; Serve serves them. Of several addresses at least one must work: a machine may lack
// an address family.
func Listen(handler http.Handler, addrs ...string) (*Server, error) {
	s := &Server{http: &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}}
	var errs []error
	for _, addr := range addrs {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.lns = append(s.lns, ln)
	}
	if len(s.lns) == 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// Serve serves until the context ends, and returns when requests have ended or were cut, at most a second after it.
func (s *Server) Serve(ctx context.Context) error {
	var serving sync.WaitGroup
	errs := make(chan error, len(s.lns))
	for _, ln := range s.lns {
		serving.Go(func() { errs <- s.http.Serve(ln) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if s.http.Shutdown(last) != nil {
		s.http.Close()
	}
	serving.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
