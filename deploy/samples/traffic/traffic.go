// Package traffic makes connections on purpose and says exactly what became of each. The same program is client and server:
// Serve offers the protocols, and each verb (Dial, Load, HalfClose, Reset, Transfer, Burst, Resolve, APIServer, HTTP) takes a request
// that is data and returns a report that is data, so that a test outside the cluster can start it in any pod and judge the report.
// It never retries: a retry would hide what it is there to find.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// Marker is in the payload of everything that a verb sends or a server answers. Whoever finds it in packets on a wire has
// found payload in clear.
const Marker = "AMBIT-PAYLOAD-IN-CLEAR"

// Ports that Serve listens on.
const (
	PortHTTP    = 8080 // whoami; the paths below answer otherwise
	PortEcho    = 9000 // returns what it gets, and ends when the client has ended
	PortGreeter = 9001 // server-first
	PortTool    = 9002 // one order a connection; see Order
	PortGRPC    = 9003 // gRPC health
)

// Paths of PortHTTP.
const (
	// PathFlaky answers every other request with 503.
	PathFlaky = "/flaky"
	// PathSlow answers after a second, or when the client has gone.
	PathSlow = "/slow"
	// PathBack sends back the body, as it comes; after an upgrade to a WebSocket, the bytes.
	PathBack = "/back"
	// PathSay answers with the query's parameter "text".
	PathSay = "/say"
	// PathGate, and what is below it, is an external authorizer over HTTP: it lets in who has a field FieldPass, and makes its value their
	// authorization. The others are told StatusNoPass.
	PathGate = "/gate/"
)

// FieldPass is what PathGate asks for.
const FieldPass = "x-pass"

// StatusNoPass is what PathGate alone tells those whom it does not let in.
const StatusNoPass = http.StatusPaymentRequired

// DefaultTimeout bounds one step (a connect, one exchange) where a request names no time.
const DefaultTimeout = 10 * time.Second

// Kind says how a connection failed, as far as the client can tell.
type Kind string

const (
	// KindRefused: RST in answer to SYN, nothing listens.
	KindRefused Kind = "refused"
	// KindReset: RST on an established connection.
	KindReset Kind = "reset"
	// KindEOF: the other side ended the stream where more was due.
	KindEOF Kind = "eof"
	// KindTimeout: nothing came in time.
	KindTimeout Kind = "timeout"
	// KindUnreachable: no route, or an ICMP message that says so.
	KindUnreachable Kind = "unreachable"
	// KindName: the name was not resolved.
	KindName Kind = "name"
	// KindWrong: an answer came and is not the expected one.
	KindWrong Kind = "wrong"
	// KindOther is everything else; the error's text says what.
	KindOther Kind = "other"
)

// errWrong marks an answer that is not the expected one.
var errWrong = errors.New("wrong answer")

// KindOf classifies err; it is empty for nil.
func KindOf(err error) Kind {
	var name *net.DNSError
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errWrong):
		return KindWrong
	case errors.As(err, &name):
		return KindName
	case errors.Is(err, syscall.ECONNREFUSED):
		return KindRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ENOTCONN): // writing, ending after it
		return KindReset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return KindUnreachable
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return KindEOF
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return KindTimeout
	}
	return KindOther
}

// Failure is one connection that did not do what it should.
type Failure struct {
	Target string    `json:"target"`
	Local  string    `json:"local,omitempty"`
	Kind   Kind      `json:"kind"`
	Error  string    `json:"error"`
	At     time.Time `json:"at"`
	// Age is how long the connection had lived, in nanoseconds.
	Age time.Duration `json:"age"`
}

// String is the failure in one line.
func (f Failure) String() string {
	return fmt.Sprintf("%s %s -> %s: %s after %s: %s", f.At.Format("15:04:05.000"), f.Local, f.Target, f.Kind, f.Age.Round(time.Millisecond), f.Error)
}

func failure(target string, conn net.Conn, err error, opened time.Time) Failure {
	f := Failure{Target: target, Kind: KindOf(err), Error: err.Error(), At: time.Now(), Age: time.Since(opened)}
	if conn != nil {
		f.Local = conn.LocalAddr().String()
	}
	return f
}

// dial opens a TCP connection within timeout.
func dial(ctx context.Context, target string, timeout time.Duration) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn.(*net.TCPConn), nil
}

// payload is a line of size bytes at least that carries the marker and label.
func payload(label string, size int) []byte {
	head := Marker + " " + label + " "
	if len(head) < size {
		head += strings.Repeat(".", size-len(head))
	}
	return append([]byte(head), '\n')
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}
