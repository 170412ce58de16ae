package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/extauthz"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// noDecision is all that a client is told whose request could not be decided on.
const noDecision = "authorization failed"

// ask asks those outside that policies want to be asked about the request, one after the other. What they change of it is done.
func (r *request) ask(asks []config.Ask) *refusal {
	for i := range asks {
		q := r.judged()
		p := policy.Matching(asks[i].Policies, &q)
		if p == nil {
			continue
		}
		if refused := r.askOne(asks[i].Provider, p); refused != nil {
			if r.c.proxy.cfg.Policies != nil {
				r.c.proxy.cfg.Policies.Decided(policy.Decision{Verdict: policy.Denied, Policy: p.Policy.Key(), Reason: refused.text})
			}
			return refused
		}
	}
	return nil
}

// judged is the request as policies look at it.
func (r *request) judged() policy.Request {
	req := &r.x.Request
	return r.c.judgedAs(&policy.Head{Method: req.Method, Authority: req.Authority, Path: req.Path, Header: req.Header}, r.claims)
}

func (r *request) askOne(to *extauthz.Config, by *policy.RequestPolicy) *refusal {
	question := extauthz.Question{
		Request: &r.x.Request, Source: r.c.client, Destination: r.c.destination, Principal: r.c.principal, Time: r.start, Claims: r.claims,
	}
	if to.Body != nil && r.x.Request.Body != nil {
		shown, more, err := r.peek(to.Body.Max)
		switch {
		case err != nil:
			return &refusal{status: 400, flag: telemetry.RequestOK, text: fmt.Sprintf("the request's body cannot be read: %v", err)}
		case more && !to.Body.Partial:
			return &refusal{status: 413, flag: telemetry.RequestMalformed, text: fmt.Sprintf(
				"the request's body has more than the %d bytes that may be sent here", to.Body.Max)}
		}
		question.Body, question.Partial = shown, more
	}
	answer, err := r.decideOutside(to, question)
	switch {
	case r.x.Context().Err() != nil:
		return &refusal{status: 0, flag: telemetry.RequestClientGone, text: "the client is gone"}
	case err != nil && to.FailOpen:
		r.failedOpen = append(r.failedOpen, to.Name)
		r.c.proxy.cfg.Logger.Warn("a request is served without the decision of an external authorizer, as its settings have it",
			"provider", to.Name, "policy", by.Policy.Key(), "error", err)
		return nil
	case err != nil:
		return &refusal{status: to.StatusOnError, flag: telemetry.RequestUnauthorized, text: fmt.Sprintf(
			"policy %s: authorizer %s has not decided: %v", by.Policy.Key(), to.Name, err)}
	case !answer.Allowed:
		r.denied = &answer
		return &refusal{status: answer.Status, flag: telemetry.RequestUnauthorized, text: fmt.Sprintf("policy %s: denied by authorizer %s", by.Policy.Key(), to.Name)}
	}
	if len(answer.ToBackend) > 0 {
		if !to.Reroute && r.asCame == nil {
			r.asCame = r.x.Request.Header.Clone()
		}
		answer.ToBackend.Apply(&r.x.Request.Header)
	}
	r.toClient = append(r.toClient, answer.ToClient...)
	return nil
}

// decideOutside sends a question and waits for its answer.
func (r *request) decideOutside(to *extauthz.Config, question extauthz.Question) (extauthz.Answer, error) {
	ctx := r.x.Context()
	if to.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, to.Timeout)
		defer cancel()
	}
	req, err := to.Ask(question)
	if err != nil {
		return extauthz.Answer{}, err
	}
	cluster := r.c.proxy.cfg.Clusters.Lookup(to.Cluster)
	if cluster == nil {
		return extauthz.Answer{}, fmt.Errorf("there is no service for it: cluster %s is not known", to.Cluster)
	}
	proto := message.HTTP2
	if to.HTTP != nil && cluster.Settings().Protocol != config.HTTP2 {
		proto = message.HTTP11
	}
	resp, done, err := send(ctx, cluster, proto, req)
	if err != nil {
		return extauthz.Answer{}, fmt.Errorf("ask %s: %w", cluster.Name(), err)
	}
	defer done()
	answer, err := to.Read(resp)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return answer, err
}

// send sends a request to an endpoint, once more on another connection if the first turns out to be dead. done gives the endpoint back,
// after the response has been read.
func send(ctx context.Context, cluster *upstream.Cluster, proto message.Protocol, req *message.Request) (resp *message.Response, done func(), err error) {
	body := req.Body
	var sent []byte
	if body != nil {
		sent, _ = body.Next() // it is there already
	}
	for range 1 + freeTries {
		e, err := cluster.Choose(nil)
		if err != nil {
			return nil, nil, err
		}
		if err := e.Begin(); err != nil {
			return nil, nil, err
		}
		if body != nil {
			req.Body = message.Bytes(append([]byte(nil), sent...), nil)
		}
		client, err := e.Client(ctx, proto)
		if err == nil {
			if resp, err = client.RoundTrip(ctx, req, nil); err == nil {
				e.Responded(resp.Status)
				return resp, e.End, nil
			}
		}
		e.End()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		// To ask twice is the same as to ask once.
		var failed *codec.Error
		if again := errors.As(err, &failed) && (failed.Stage == codec.Unsent || failed.Stage == codec.Refused || failed.Stale); !again && !errors.Is(err, upstream.ErrRetired) {
			e.Failed()
			return nil, nil, err
		}
	}
	return nil, nil, errors.New("connections to it end before they are used")
}

// peek reads the beginning of the request's body, of at most so many bytes; more tells that there is more. Whoever reads the body next
// gets all of it.
func (r *request) peek(most int) (shown []byte, more bool, err error) {
	req := &r.x.Request
	req.Expect = false // the client is told to send it
	p, is := req.Body.(*peeked)
	if !is {
		p = &peeked{body: req.Body}
		req.Body = p
	}
	for !p.ended && len(p.kept) <= most {
		piece, err := p.body.Next()
		if err == io.EOF {
			p.ended = true
		} else if err != nil {
			return nil, false, err
		}
		p.kept = append(p.kept, piece...)
	}
	if len(p.kept) > most {
		return append(shown, p.kept[:most]...), true, nil
	}
	return append(shown, p.kept...), false, nil
}

// peeked is a body of which the beginning was read.
type peeked struct {
	body  message.Body
	kept  []byte
	ended bool
}

// Next is of message.Body.
func (p *peeked) Next() ([]byte, error) {
	switch {
	case len(p.kept) > 0:
		out := p.kept
		p.kept = nil
		return out, nil
	case p.ended:
		return nil, io.EOF
	}
	return p.body.Next()
}

// Ready is of message.Body.
func (p *peeked) Ready() bool { return len(p.kept) > 0 || p.ended || p.body.Ready() }

// Trailers is of message.Body.
func (p *peeked) Trailers() message.Fields { return p.body.Trailers() }

// Close is of message.Body.
func (p *peeked) Close() { p.body.Close() }

// denial is the response to a request that was denied outside: as it was decided, but for gRPC, whose clients have a status of their own.
func (r *refusal) denial(a *extauthz.Answer, grpc bool) *message.Response {
	out := &message.Response{Status: a.Status, Header: a.Header}
	if grpc {
		out.Status = 200
		out.Header.Set("content-type", "application/grpc")
		if !out.Header.Has("grpc-status") {
			out.Header.Set("grpc-status", strconv.Itoa(r.grpcStatus()))
			out.Header = append(out.Header, message.Field{Name: "grpc-message", Value: grpcMessage(string(a.Body)), Sensitive: true})
		}
		return out
	}
	if len(a.Body) > 0 && a.Status != http.StatusNoContent && a.Status != http.StatusNotModified {
		out.Body, out.Length = message.Bytes(a.Body, nil), int64(len(a.Body))
	}
	return out
}
