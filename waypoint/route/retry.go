package route

import (
	"math/rand/v2"
	"slices"
	"time"
)

// RetryOn is a set of conditions under which a request is tried again.
type RetryOn uint32

// Conditions, named as in retry_on. The first four are what can happen before a response, which is what Before is told.
const (
	// OnConnectFailure: no connection to the endpoint could be made; nothing was sent.
	OnConnectFailure RetryOn = 1 << iota
	// OnRefusedStream: the endpoint says that it has not begun with the stream (HTTP/2 REFUSED_STREAM, or beyond a GOAWAY).
	OnRefusedStream
	// OnReset: the endpoint ended the stream, or did not answer, or the try took longer than PerTryTimeout, before it sent the
	// header of a response. As a condition it stands for the others of these four as well.
	OnReset
	// OnResetBeforeRequest: as OnReset, but before anything of the request was sent to it.
	OnResetBeforeRequest
	// On5xx: a status of 500 to 599, or OnReset.
	On5xx
	// OnGatewayError: 502, 503 or 504, or OnReset.
	OnGatewayError
	// OnRetriable4xx: 409.
	OnRetriable4xx
	// OnStatusCodes: a status that is in Codes.
	OnStatusCodes
	// OnCancelled and the next four: a grpc-status of that name in the header of the response.
	OnCancelled
	OnDeadlineExceeded
	OnInternal
	OnResourceExhausted
	OnUnavailable
)

// retryNames are the words of retry_on.
var retryNames = map[string]RetryOn{
	"connect-failure": OnConnectFailure, "refused-stream": OnRefusedStream, "reset": OnReset,
	"reset-before-request": OnResetBeforeRequest, "5xx": On5xx, "gateway-error": OnGatewayError,
	"retriable-4xx": OnRetriable4xx, "retriable-status-codes": OnStatusCodes, "cancelled": OnCancelled,
	"deadline-exceeded": OnDeadlineExceeded, "internal": OnInternal, "resource-exhausted": OnResourceExhausted,
	"unavailable": OnUnavailable,
}

// Retry says when a request is tried again, and how. An endpoint that was tried is tried again only if there is no other, whether
// the policy says so (previous_hosts) or not.
type Retry struct {
	// On are the conditions, one of which must hold.
	On RetryOn
	// Codes are the statuses of OnStatusCodes, ascending.
	Codes []int
	// Number is how many tries may follow the first; 0 for none.
	Number int
	// PerTryTimeout bounds each try, from when the request has been sent to the header of the response; 0 for no bound of its own.
	PerTryTimeout time.Duration
	// BackOffLeast, BackOffBase and BackOffMax: see BackOff. BackOffLeast is 0 unless the policy sets a back-off: then it is its base,
	// since the Gateway API promises at least that time between tries.
	BackOffLeast, BackOffBase, BackOffMax time.Duration
}

// Envoy's defaults.
const (
	defaultRetries     = 1
	defaultBackOff     = 25 * time.Millisecond
	defaultBackOffMax  = 10 // times the base
	defaultRouteTime   = 15 * time.Second
	maxDirectBodyBytes = 64 << 10
)

// Before tells whether what happened to a try before the header of a response is one to try again after: happened is one of
// OnConnectFailure, OnRefusedStream, OnReset and OnResetBeforeRequest. Whether the request can be sent again is for the caller
// to know.
func (r *Retry) Before(happened RetryOn) bool {
	return r.On&(happened|OnReset|On5xx|OnGatewayError) != 0
}

// Status tells whether a response of this status is one to try again after.
func (r *Retry) Status(code int) bool {
	switch {
	case r.On&On5xx != 0 && code >= 500 && code <= 599:
		return true
	case r.On&OnGatewayError != 0 && code >= 502 && code <= 504:
		return true
	case r.On&OnRetriable4xx != 0 && code == 409:
		return true
	case r.On&OnStatusCodes != 0:
		_, found := slices.BinarySearch(r.Codes, code)
		return found
	}
	return false
}

// GRPC tells whether a response with this grpc-status in its header (not in its trailers) is one to try again after.
func (r *Retry) GRPC(status string) bool {
	switch status {
	case "1":
		return r.On&OnCancelled != 0
	case "4":
		return r.On&OnDeadlineExceeded != 0
	case "8":
		return r.On&OnResourceExhausted != 0
	case "13":
		return r.On&OnInternal != 0
	case "14":
		return r.On&OnUnavailable != 0
	}
	return false
}

// BackOff returns the pause before the n-th try after the first (n from 1): a random time from BackOffLeast to BackOffBase x (2^n - 1),
// and at most BackOffMax.
func (r *Retry) BackOff(n int) time.Duration {
	most := r.BackOffMax
	if n < 20 { // beyond, any base has met its maximum
		most = min(most, r.BackOffBase*(1<<n-1))
	}
	if most <= r.BackOffLeast {
		return r.BackOffLeast
	}
	return r.BackOffLeast + rand.N(most-r.BackOffLeast)
}
