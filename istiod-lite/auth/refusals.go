package auth

import (
	"context"
	"log/slog"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// Refusals are logged at most so fast: whoever is refused must not fill the log by asking again.
const (
	refusalsPerSecond = 5
	refusalsAtOnce    = 50
)

// Refusals logs who was refused, and why. It is safe for concurrent use. Make one with NewRefusals.
type Refusals struct {
	log     *slog.Logger
	limit   *rate.Limiter
	skipped atomic.Int64
}

// NewRefusals returns Refusals that log to log.
func NewRefusals(log *slog.Logger) *Refusals {
	return &Refusals{log: log, limit: rate.NewLimiter(refusalsPerSecond, refusalsAtOnce)}
}

// Refused logs one refusal, or counts it if there were many of late.
func (r *Refusals) Refused(ctx context.Context, msg string, args ...any) {
	if !r.limit.Allow() {
		r.skipped.Add(1)
		return
	}
	if n := r.skipped.Swap(0); n > 0 {
		args = append(args, "refusedUnlogged", n)
	}
	r.log.WarnContext(ctx, msg, args...)
}
