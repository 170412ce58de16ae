// Package admin serves what people and tools look at: the state of a data plane on loopback, metrics, and readiness.
//
// Rule of the room: it shows what it is given and changes nothing but the log level; whatever it is given must be safe to
// look at while the proxy works.
package admin

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// Timeouts of HTTP requests.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = time.Minute
)

// Admin is what the loopback endpoint shows. All fields are required; the functions may be called concurrently.
type Admin struct {
	// Program is the name of the program, for the page at /.
	Program string
	// Pages are shown beside those that every program has.
	Pages []Page
	// Levels are the log's, which /logging changes.
	Levels *telemetry.Levels
	// Ready tells what readiness waits for, for the page at /.
	Ready *Readiness
	// Quit begins the end of the process, as SIGTERM does. It must not block.
	Quit    func()
	Version string
}

// Page is one page of JSON.
type Page struct {
	// Path is without its slash: "config_dump".
	Path string
	// About says in a few words what it shows.
	About string
	// Write writes it. Its errors are the reader's.
	Write func(io.Writer) error
}

// Handler serves the endpoint.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	for _, p := range a.Pages {
		mux.HandleFunc("GET /"+p.Path, streamed(p.Write))
	}
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
	fmt.Fprintf(w, "<!doctype html><title>%s</title><h1>%[1]s %s</h1>\n", a.Program, html.EscapeString(a.Version))
	if missing := a.Ready.Missing(); len(missing) > 0 {
		fmt.Fprintf(w, "<p>Not ready, pending: %s\n", html.EscapeString(strings.Join(missing, ", ")))
	} else {
		fmt.Fprintln(w, "<p>Ready.")
	}
	fmt.Fprintf(w, "<p>Log: %s\n<ul>\n", a.Levels)
	for _, p := range append(slices.Clone(a.Pages),
		Page{Path: "logging", About: "log levels; POST ?level=debug or ?level=access=warn,info changes them, ?reset goes back"},
		Page{Path: "debug/pprof/", About: "profiles of the process: profile?seconds=10, heap, goroutine, ..."},
	) {
		fmt.Fprintf(w, "<li><a href=\"%s\">/%s</a>: %s\n", p.Path, p.Path, p.About)
	}
	fmt.Fprintln(w, "<li>POST /quitquitquit: end, as after SIGTERM\n</ul>")
}

// logging shows the levels, and changes them on POST.
func (a *Admin) logging(w http.ResponseWriter, r *http.Request) {
	switch query := r.URL.Query(); {
	case r.Method == http.MethodPost:
		filter, reset := query.Get("level"), query.Has("reset")
		if filter == "reset" {
			filter, reset = "", true
		}
		directives, err := telemetry.ParseFilter(filter)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if unknown := a.Levels.Unknown(directives); len(unknown) > 0 {
			http.Error(w, fmt.Sprintf("there is no target %s; targets are %s", strings.Join(unknown, ", "),
				strings.Join(a.Levels.Targets(), ", ")), http.StatusBadRequest)
			return
		}
		a.Levels.Set(reset, directives...)
	case r.Method != http.MethodGet:
		http.Error(w, "GET shows the levels, POST ?level=<level> or ?level=<target>=<level>,... changes them, ?reset goes back",
			http.StatusMethodNotAllowed)
		return
	}
	fmt.Fprintf(w, "current log level is %s\n", a.Levels)
}

// streamed serves JSON that is written while it is made.
func streamed(write func(io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := write(w); err != nil {
			// The status has gone out. A reader that is still there must not take a part for the whole.
			panic(http.ErrAbortHandler)
		}
	}
}

// MetricsHandler serves metrics at both paths that scrapers know.
func MetricsHandler(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /stats/prometheus", metrics)
	return mux
}

// Readiness tells whether the proxy is ready, and if not, what is missing. Its methods may be called concurrently; the zero
// value is ready.
type Readiness struct {
	mu      sync.Mutex // guards what follows
	pending map[string]func() bool
	details map[string]func() string
	remark  func() string
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

// Explain adds a detail to a part while it is waited for, such as the names of pods; "" adds none.
func (r *Readiness) Explain(name string, detail func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.details == nil {
		r.details = map[string]func() string{}
	}
	r.details[name] = detail
}

// Remark adds a line to what is said while everything is ready; "" adds none.
func (r *Readiness) Remark(text func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remark = text
}

// Missing lists what is waited for, sorted; nothing means ready.
func (r *Readiness) Missing() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var missing []string
	for name, done := range r.pending {
		if done() {
			delete(r.pending, name)
			continue
		}
		if detail := r.details[name]; detail != nil {
			if text := detail(); text != "" {
				name += " (" + text + ")"
			}
		}
		missing = append(missing, name)
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
		r.mu.Lock()
		remark := r.remark
		r.mu.Unlock()
		if remark != nil {
			if text := remark(); text != "" {
				fmt.Fprintln(w, text)
			}
		}
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

// Addr is the first listener's address.
func (s *Server) Addr() net.Addr { return s.lns[0].Addr() }

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
