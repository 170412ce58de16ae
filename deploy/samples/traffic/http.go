package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

// HTTPRequest asks an HTTP server, over one connection where it lets that be.
type HTTPRequest struct {
	URL    string            `json:"url"`
	Method string            `json:"method,omitempty"` // default GET
	Header map[string]string `json:"header,omitempty"`
	Host   string            `json:"host,omitempty"` // default that of the URL
	// Count is how often; default once.
	Count int `json:"count,omitempty"`
	// HTTP2 speaks HTTP/2 without TLS from the first byte.
	HTTP2 bool `json:"http2,omitempty"`
	// Timeout bounds each exchange; default DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// HTTPReport has one reply for each request. Redirects are replies; they are not followed.
type HTTPReport struct {
	Replies []HTTPReply `json:"replies"`
}

// HTTPReply is what became of one request.
type HTTPReply struct {
	Status int         `json:"status,omitempty"`
	Proto  string      `json:"proto,omitempty"`
	Header http.Header `json:"header,omitempty"`
	// Who is what a server of this package says of itself; zero if somebody else answered.
	Who whoami.Who `json:"who"`
	// Kind and Error are empty if there was an answer, whatever its status.
	Kind  Kind          `json:"kind,omitempty"`
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"took"`
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// HTTP sends the requests one after the other.
func HTTP(ctx context.Context, req HTTPRequest) (HTTPReport, error) {
	var protocols http.Protocols
	protocols.SetHTTP1(!req.HTTP2)
	protocols.SetUnencryptedHTTP2(req.HTTP2)
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	var report HTTPReport
	for range max(1, req.Count) {
		reply, err := req.send(ctx, transport)
		if err != nil {
			return report, err
		}
		report.Replies = append(report.Replies, reply)
	}
	return report, nil
}

// send makes one exchange. An error is one of the request itself.
func (req HTTPRequest) send(ctx context.Context, transport *http.Transport) (HTTPReply, error) {
	ctx, cancel := context.WithTimeout(ctx, orDefault(req.Timeout, DefaultTimeout))
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, req.Method, req.URL, nil)
	if err != nil {
		return HTTPReply{}, fmt.Errorf("make the request: %w", err)
	}
	for name, value := range req.Header {
		r.Header.Set(name, value)
	}
	if req.Host != "" {
		r.Host = req.Host
	}
	begin := time.Now()
	resp, err := transport.RoundTrip(r)
	var reply HTTPReply
	if err == nil {
		reply.Status, reply.Proto, reply.Header = resp.StatusCode, resp.Proto, resp.Header
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		resp.Body.Close()
		_ = json.Unmarshal(body, &reply.Who) // others answer otherwise
	}
	reply.Took = time.Since(begin)
	if reply.Kind = KindOf(err); err != nil {
		reply.Error = err.Error()
	}
	return reply, nil
}
