package proxy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// refusal is an answer that the proxy makes itself.
type refusal struct {
	status int
	flag   telemetry.RequestFlag
	grpc   int    // what gRPC clients are told, if it is not 0; else it follows from status
	text   string // what happened, by which rule, and what to do
	// challenge is what a client is told of the token that it should have; "" for nothing.
	challenge string
}

// Statuses of gRPC (google.rpc.Code).
const (
	grpcUnknown          = 2
	grpcDeadlineExceeded = 4
	grpcPermissionDenied = 7
	grpcExhausted        = 8
	grpcUnimplemented    = 12
	grpcInternal         = 13
	grpcUnavailable      = 14
	grpcDataLoss         = 15
	grpcUnauthenticated  = 16
)

// grpcStatus is what gRPC clients are told where others see an HTTP status. The mapping is gRPC's own
// (doc/http-grpc-status-mapping.md), but for time-outs, of which it has a status.
func (r *refusal) grpcStatus() int {
	switch {
	case r.grpc != 0:
		return r.grpc
	case r.flag == telemetry.RequestTimeout:
		return grpcDeadlineExceeded
	}
	switch r.status {
	case 400:
		return grpcInternal
	case 401:
		return grpcUnauthenticated
	case 403:
		return grpcPermissionDenied
	case 404:
		return grpcUnimplemented
	case 429, 502, 503, 504:
		return grpcUnavailable
	}
	return grpcUnknown
}

// response makes the answer.
func (r *refusal) response(grpc bool) *message.Response {
	text, end := "waypoint: "+r.text, "\n"
	switch r.flag { // which policies there are is nothing for clients to know
	case telemetry.RequestDenied:
		text, end = accessDenied, ""
	case telemetry.RequestUnauthorized:
		text, end = noDecision, ""
	case telemetry.RequestUnauthenticated:
		text, end = r.text, "" // Envoy's
	}
	resp := &message.Response{Status: 200, Header: message.Fields{
		{Name: "content-type", Value: "application/grpc"},
		{Name: "grpc-status", Value: strconv.Itoa(r.grpcStatus())},
		{Name: "grpc-message", Value: grpcMessage(text), Sensitive: true},
	}}
	if !grpc {
		text += end
		resp = &message.Response{Status: r.status, Length: int64(len(text)), Body: message.String(text), Header: message.Fields{
			{Name: "content-type", Value: "text/plain"},
		}}
	}
	if r.challenge != "" {
		resp.Header.Add("www-authenticate", r.challenge)
	}
	return resp
}

// grpcMessage percent-encodes as gRPC wants it.
func grpcMessage(s string) string {
	plain := func(b byte) bool { return b >= ' ' && b <= '~' && b != '%' }
	clean := true
	for i := range len(s) {
		clean = clean && plain(s[i])
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// isGRPC tells whether a request is one of gRPC (not of gRPC-Web, whose clients read HTTP).
func isGRPC(h message.Fields) bool {
	rest, ok := strings.CutPrefix(h.Get("content-type"), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// grpcResult returns the grpc-status of a response, which may be in its header or in its trailers; NoGRPC if it is in neither.
func grpcResult(header, trailers message.Fields) int8 {
	text, ok := header.Lookup("grpc-status")
	if !ok {
		text = trailers.Get("grpc-status")
	}
	n, err := strconv.ParseUint(text, 10, 7)
	if err != nil {
		return telemetry.NoGRPC
	}
	return int8(n)
}
