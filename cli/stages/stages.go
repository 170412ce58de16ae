// Package stages brings an installed mesh to another chart part by part: each part's objects are applied and waited for
// before the next one's, and the first failure ends it. It is how `ambit upgrade` goes forward and `ambit rollback` back.
package stages

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/rollout"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// partly starts the description of a revision in which only some parts have been brought over.
const partly = "partly: "

// Run is one way from the current revision to a chart.
type Run struct {
	Env       *command.Env
	Cluster   *kube.Cluster
	Releases  *release.Releases
	Namespace string
	Chart     *release.Chart
	Values    map[string]any
	// Order is the order of the parts.
	Order []survey.Component
	// What is done, such as "ambit upgrade to v0.2.0"; it is recorded with the revisions.
	What string
	// Timeout is how long each part may take.
	Timeout time.Duration
}

// Do goes through the parts. On an error those before the failed one are of the new chart and ready, those after it are
// untouched. At the end the waypoints, which the control plane rolls by itself, are of the new chart too.
func (r *Run) Do(ctx context.Context) (*release.Revision, error) {
	waiter := &rollout.Waiter{Client: r.Cluster.Kubernetes, Namespace: r.Namespace, Note: r.Env.Notef}
	var last *release.Revision
	for i, component := range r.Order {
		later := r.Order[i+1:]
		description := r.What
		if len(later) > 0 {
			description = fmt.Sprintf("%s%s, as far as the %s", partly, r.What, component.Title())
		}
		r.Env.Notef("%d/%d %s", i+1, len(r.Order), component.Title())
		keep := func(c string) bool { return slices.Contains(later, survey.Component(c)) }
		revision, err := r.Releases.Upgrade(ctx, r.Chart, r.Values, keep, description)
		if err != nil {
			return nil, fmt.Errorf("apply the %s: %w", component.Title(), err)
		}
		last = revision
		waitCtx, cancel := context.WithTimeout(ctx, r.Timeout)
		err = waiter.Wait(waitCtx, component)
		cancel()
		if err != nil {
			r.tell(err)
			return nil, err
		}
	}
	return last, r.waypoints(ctx)
}

func (r *Run) tell(err error) {
	var notReady *rollout.NotReadyError
	if errors.As(err, &notReady) {
		for _, line := range notReady.Troubles {
			r.Env.Notef("  %s", line)
		}
	}
}

// Complete tells whether a revision has all parts of one chart and was applied without error.
func Complete(r *release.Revision) bool {
	return !strings.HasPrefix(r.Description, partly) && r.Status != "failed" && !strings.HasPrefix(r.Status, "pending")
}

// LastComplete returns the newest complete revision before the one with the given number, or nil.
func LastComplete(history []*release.Revision, before int) *release.Revision {
	var last *release.Revision
	for _, r := range history {
		if r.Number < before && Complete(r) && (last == nil || r.Number > last.Number) {
			last = r
		}
	}
	return last
}
