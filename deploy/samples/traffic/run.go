package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"
)

const usage = `traffic serve [--drip-to host:port] [--drip-every 200ms] [--grace 0s]
    offers all protocols until it is ended
traffic healthy
    exits with 0 if the server in this pod answers
traffic get <url>
    prints what an HTTP server answers
traffic dial|load|half-close|reset|transfer|burst|resolve|api-server|http|http-load '<request as JSON>'
    makes connections and prints a report as JSON; loads print {"ready":true} first and end when their standard input does
`

// Verbs that take a request and print a report.
const (
	VerbDial      = "dial"
	VerbLoad      = "load"
	VerbHalfClose = "half-close"
	VerbReset     = "reset"
	VerbTransfer  = "transfer"
	VerbBurst     = "burst"
	VerbResolve   = "resolve"
	VerbAPIServer = "api-server"
	VerbHTTP      = "http"
	VerbHTTPLoad  = "http-load"
)

// Ready is the line that VerbLoad and VerbHTTPLoad print before their report.
type Ready struct {
	Ready bool `json:"ready"`
}

// Run is the command line.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no verb; usage:\n%s", usage)
	}
	switch args[0] {
	case "serve":
		return runServe(ctx, args[1:], stderr)
	case "healthy":
		return healthy(ctx)
	}
	if len(args) != 2 {
		return fmt.Errorf("want a verb and one request; usage:\n%s", usage)
	}
	raw := []byte(args[1])
	switch args[0] {
	case "get":
		return get(ctx, args[1], stdout)
	case VerbDial:
		return verb(ctx, raw, stdout, Dial)
	case VerbLoad:
		return verb(ctx, raw, stdout, untilStopped(stdin, stdout, Load))
	case VerbHTTPLoad:
		return verb(ctx, raw, stdout, untilStopped(stdin, stdout, HTTPLoad))
	case VerbHalfClose:
		return verb(ctx, raw, stdout, HalfClose)
	case VerbReset:
		return verb(ctx, raw, stdout, Reset)
	case VerbTransfer:
		return verb(ctx, raw, stdout, Transfer)
	case VerbBurst:
		return verb(ctx, raw, stdout, Burst)
	case VerbResolve:
		return verb(ctx, raw, stdout, Resolve)
	case VerbAPIServer:
		return verb(ctx, raw, stdout, APIServer)
	case VerbHTTP:
		return verb(ctx, raw, stdout, HTTP)
	}
	return fmt.Errorf("unknown verb %q; usage:\n%s", args[0], usage)
}

// untilStopped runs a load until its standard input ends, or has a line, and says when it is ready.
func untilStopped[Request any](stdin io.Reader, stdout io.Writer, load func(context.Context, Request, func()) (LoadReport, error)) func(context.Context, Request) (LoadReport, error) {
	return func(ctx context.Context, req Request) (LoadReport, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Reading cannot be called off, so this goroutine may outlive the load; the process ends with it.
		go func() {
			_, _ = bufio.NewReader(stdin).ReadString('\n')
			cancel()
		}()
		return load(ctx, req, func() { _ = json.NewEncoder(stdout).Encode(Ready{true}) })
	}
}

// verb decodes a request, runs it, and prints the report.
func verb[Request, Report any](ctx context.Context, raw []byte, stdout io.Writer, run func(context.Context, Request) (Report, error)) error {
	var request Request
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	report, err := run(ctx, request)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(stdout).Encode(report); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	return nil
}

func runServe(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("traffic serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dripTo := flags.String("drip-to", "", "send a line to this echo server (host:port), over and over, from the start")
	dripEvery := flags.Duration("drip-every", 200*time.Millisecond, "how often")
	grace := flags.Duration("grace", 0, "how long open TCP connections may go on once it is ended; ports are closed at once")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return Serve(ctx, ServeConfig{
		DripTo: *dripTo, DripEvery: *dripEvery, Grace: *grace, Logger: slog.New(slog.NewTextHandler(stderr, nil)),
	})
}

// healthy asks the server in the same pod.
func healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return get(ctx, "http://"+net.JoinHostPort("localhost", fmt.Sprint(PortHTTP))+"/healthz", io.Discard)
}

// get prints what url answers, and fails unless the status is 200.
func get(ctx context.Context, url string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(stdout, io.LimitReader(resp.Body, 1<<20)); err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("get " + url + ": " + resp.Status)
	}
	return nil
}
