package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/greeter"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

// Protocol is what an Attempt speaks once connected.
type Protocol string

const (
	// ProtocolHTTP asks PortHTTP who it is.
	ProtocolHTTP Protocol = "http"
	// ProtocolWho asks PortTool who it is: a client-first protocol that no proxy knows.
	ProtocolWho Protocol = "who"
	// ProtocolEcho sends a line to PortEcho, ends, and wants the line and the end back.
	ProtocolEcho Protocol = "echo"
	// ProtocolGreeter waits for PortGreeter's first line before it says one.
	ProtocolGreeter Protocol = "greeter"
)

// Attempt is one connection to make.
type Attempt struct {
	// Target is host:port; the host may be a name or an address.
	Target   string   `json:"target"`
	Protocol Protocol `json:"protocol"`
}

// DialRequest is a list of attempts, made at the same time, each once.
type DialRequest struct {
	Attempts []Attempt     `json:"attempts"`
	Timeout  time.Duration `json:"timeout,omitempty"` // of each attempt as a whole; zero is DefaultTimeout
	Label    string        `json:"label,omitempty"`   // goes into the payload beside Marker
}

// Outcome is what became of one attempt.
type Outcome struct {
	Attempt
	// Kind is empty if the exchange was as it should be.
	Kind  Kind   `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
	// Local and Remote are the connection's ends as the client sees them.
	Local  string `json:"local,omitempty"`
	Remote string `json:"remote,omitempty"`
	// Server is the server's account; for ProtocolEcho it is empty.
	Server whoami.Who    `json:"server"`
	Took   time.Duration `json:"took"`
}

// DialReport has one outcome an attempt, in the same order.
type DialReport struct {
	Outcomes []Outcome `json:"outcomes"`
}

// Dial makes the attempts.
func Dial(ctx context.Context, req DialRequest) (DialReport, error) {
	report := DialReport{Outcomes: make([]Outcome, len(req.Attempts))}
	var wg sync.WaitGroup
	for i, attempt := range req.Attempts {
		wg.Go(func() {
			report.Outcomes[i] = try(ctx, attempt, orDefault(req.Timeout, DefaultTimeout), req.Label)
		})
	}
	wg.Wait()
	return report, nil
}

func try(ctx context.Context, attempt Attempt, timeout time.Duration, label string) Outcome {
	outcome := Outcome{Attempt: attempt}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := exchange(ctx, attempt, label, &outcome)
	outcome.Took = time.Since(start)
	if err != nil {
		outcome.Kind, outcome.Error = KindOf(err), err.Error()
	}
	return outcome
}

func exchange(ctx context.Context, attempt Attempt, label string, outcome *Outcome) error {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", attempt.Target)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	outcome.Local, outcome.Remote = conn.LocalAddr().String(), conn.RemoteAddr().String()
	switch attempt.Protocol {
	case ProtocolHTTP:
		return askHTTP(ctx, conn, attempt.Target, label, &outcome.Server)
	case ProtocolWho:
		return askWho(conn, label, &outcome.Server)
	case ProtocolEcho:
		return echoOnce(conn, payload(label, 0))
	case ProtocolGreeter:
		greeting, err := greeter.Converse(conn, strings.TrimSpace(Marker+" "+label))
		outcome.Server.Client = greeting.Client
		return err
	}
	return fmt.Errorf("unknown protocol %q", attempt.Protocol)
}

func askHTTP(ctx context.Context, conn *net.TCPConn, host, label string, who *whoami.Who) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/"+Marker, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Label", label)
	req.Close = true
	transport := http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: status %s", errWrong, resp.Status)
	}
	return decodeWho(body, who)
}

func askWho(conn *net.TCPConn, label string, who *whoami.Who) error {
	line, err := json.Marshal(Order{Op: OpWho, ID: Marker + " " + label})
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(conn, 64<<10))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if len(body) == 0 {
		return fmt.Errorf("read the answer: %w", io.EOF)
	}
	return decodeWho(body, who)
}

func decodeWho(body []byte, who *whoami.Who) error {
	if err := json.Unmarshal(body, who); err != nil {
		return fmt.Errorf("%w: %q", errWrong, body)
	}
	return nil
}

// echoOnce sends a line, ends, and wants the same line and then the end. It leaves closing to the caller.
func echoOnce(conn *net.TCPConn, line []byte) error {
	if _, err := conn.Write(line); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	back, err := io.ReadAll(io.LimitReader(conn, int64(len(line))+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the echo: %w", err)
	case len(back) < len(line):
		return fmt.Errorf("read the echo: %d of %d bytes: %w", len(back), len(line), io.ErrUnexpectedEOF)
	case !bytes.Equal(back, line):
		return fmt.Errorf("read the echo: %w", errWrong)
	}
	return nil
}
