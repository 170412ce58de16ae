package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/roster"
)

// stage is what the API server thinks, and a clock.
type stage struct {
	reviews int
	err     error
	pod     *cluster.Pod
	podErr  error
	now     time.Time
}

func (s *stage) Pod(context.Context, cluster.Key, string) (*cluster.Pod, error) {
	return s.pod, s.podErr
}

func (s *stage) review(_ context.Context, token string, audiences []string) (authenticationv1.TokenReviewStatus, error) {
	s.reviews++
	if s.err != nil {
		return authenticationv1.TokenReviewStatus{}, s.err
	}
	if token != "good" {
		return authenticationv1.TokenReviewStatus{Error: "never heard of it"}, nil
	}
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: audiences,
		User: authenticationv1.UserInfo{Username: "system:serviceaccount:istio-system:ztunnel", Extra: map[string]authenticationv1.ExtraValue{
			extraPodName: {"ztunnel-1"}, extraPodUID: {"uid-1"},
		}},
	}, nil
}

func newStage() (*stage, *Authenticator) {
	s := &stage{
		now: time.Unix(1000, 0),
		pod: &cluster.Pod{Key: cluster.Key{Namespace: "istio-system", Name: "ztunnel-1"}, UID: "uid-1", Node: "node1", ServiceAccount: "ztunnel"},
	}
	return s, New(Config{Review: s.review, Pods: s, TrustDomains: func() []string { return []string{api.DefaultTrustDomain} }, Now: func() time.Time { return s.now }})
}

func call(headers ...string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs(headers...))
}

func TestToken(t *testing.T) {
	s, a := newStage()
	want := Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Pod: "ztunnel-1", PodUID: "uid-1", Node: "node1"}
	for range 3 {
		if c, err := a.Caller(call("authorization", "Bearer good")); err != nil || c != want {
			t.Fatalf("got %+v, %v, want %+v", c, err, want)
		}
	}
	if s.reviews != 1 {
		t.Errorf("one token was reviewed %d times in a moment", s.reviews)
	}
	s.now = s.now.Add(reviewTTL)
	if _, err := a.Caller(call("authorization", "bearer good")); err != nil || s.reviews != 2 {
		t.Errorf("%v after %d reviews, want a second review after %s", err, s.reviews, reviewTTL)
	}
	// What is remembered does not outlive the pod.
	s.podErr = fmt.Errorf("pod: %w", roster.ErrNotFound)
	if _, err := a.Caller(call("authorization", "Bearer good")); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token whose pod is gone: %v, want Unauthenticated", err)
	}
	// An API server that is away is no reason to tell a proxy that it is nobody.
	s.podErr = errors.New("away")
	if _, err := a.Caller(call("authorization", "Bearer good")); status.Code(err) != codes.Unavailable {
		t.Errorf("no word of the pod: %v, want Unavailable", err)
	}
	s.podErr, s.err, s.now = nil, errors.New("away"), s.now.Add(reviewTTL)
	if _, err := a.Caller(call("authorization", "Bearer good")); status.Code(err) != codes.Unavailable {
		t.Errorf("no review: %v, want Unavailable", err)
	}
	s.err = nil
	s.pod.ServiceAccount = "another"
	if _, err := a.Caller(call("authorization", "Bearer good")); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a pod of another account: %v, want Unauthenticated", err)
	}
}

func TestMalformedCredentials(t *testing.T) {
	_, a := newStage()
	for _, ctx := range []context.Context{
		context.Background(), call(), call("authorization", ""), call("authorization", "Bearer"), call("authorization", "Bearer "),
		call("authorization", "Basic good"), call("authorization", "good"), call("authorization", "Bearer bad"),
		call("authorization", "Bearer good", "authorization", "Bearer bad"),
	} {
		for name, f := range map[string]func(context.Context) (Caller, error){"Caller": a.Caller, "CallerByToken": a.CallerByToken} {
			if c, err := f(ctx); status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s: %+v, %v, want Unauthenticated", name, c, err)
			}
		}
	}
}

// What is remembered is bounded, and makes room for what is new.
func TestRememberedTokensAreBounded(t *testing.T) {
	s, a := newStage()
	for i := range maxKnown + 10 {
		a.remember(tokenHash{byte(i), byte(i >> 8), byte(i >> 16)}, Caller{})
	}
	if n := len(a.known); n != maxKnown {
		t.Errorf("%d tokens are remembered, at most %d", n, maxKnown)
	}
	s.now = s.now.Add(reviewTTL + time.Second)
	a.remember(tokenHash{31: 1}, Caller{})
	if n := len(a.known); n != 1 {
		t.Errorf("%d tokens are remembered after all but one have ended", n)
	}
}

// Whoever is refused again and again fills no log, and is counted.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := NewRefusals(slog.New(slog.NewTextHandler(&out, nil)))
		for range 1000 {
			r.Refused(t.Context(), "refused", "cause", "x")
		}
		if n := strings.Count(out.String(), "\n"); n != refusalsAtOnce {
			t.Errorf("%d lines, at most %d", n, refusalsAtOnce)
		}
		out.Reset()
		time.Sleep(time.Second)
		r.Refused(t.Context(), "refused", "cause", "x")
		if want := fmt.Sprint("refusedUnlogged=", 1000-refusalsAtOnce); !strings.Contains(out.String(), want) {
			t.Errorf("%q does not say %s", out.String(), want)
		}
	})
}
