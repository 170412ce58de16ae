package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

//go:embed kettle.yaml
var kettle []byte

// cups is how many requests the counts are made of, and share what the second version is to get of them.
const (
	cups  = 300
	share = 0.1
)

// requests are the steps about what is HTTP.
func (s *Show) requests() []step {
	return []step{
		{"a waypoint, by one command", s.startWaypoint},
		{"a route: 90 of 100 requests to v1, 10 to v2", s.split},
		{"a header chooses the version", s.header},
		{"a retry hides an error", s.retry},
		{"a policy refuses a path", s.refusePath},
		{"what it looked like in metrics", s.metrics},
		{"remove the waypoint", s.removeWaypoint},
	}
}

func (s *Show) ambit(ctx context.Context, args ...string) error {
	return s.run(ctx, s.root+"/bin/ambit", args...)
}

func (s *Show) startWaypoint(ctx context.Context) (string, error) {
	err := s.ambit(ctx, "waypoint", "apply", "-n", namespace, "--enroll-namespace", "--wait", "--waypoint-timeout", ready.String())
	return fmt.Sprintf("%s=waypoint on the namespace; the pods of the waypoint are ready", api.LabelUseWaypoint), err
}

// pour sends requests from the guest.
func (s *Show) pour(ctx context.Context, request traffic.HTTPRequest) ([]traffic.HTTPReply, error) {
	report, err := harness.Do[traffic.HTTPReport](ctx, s.cluster, guest(), traffic.VerbHTTP, request)
	if err == nil && len(report.Replies) != max(1, request.Count) {
		err = fmt.Errorf("%d replies to %d requests", len(report.Replies), request.Count)
	}
	return report.Replies, err
}

// who counts the replies by pod, and by status where that is not 200.
func who(replies []traffic.HTTPReply) map[string]int {
	count := map[string]int{}
	for _, r := range replies {
		switch {
		case r.Kind != "":
			count[string(r.Kind)]++
		case r.Status != 200:
			count[strconv.Itoa(r.Status)]++
		default:
			count[r.Who.Pod]++
		}
	}
	return count
}

// told is a count in words.
func told(count map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d from %s", count[name], name))
	}
	return strings.Join(parts, ", ")
}

func (s *Show) split(ctx context.Context) (string, error) {
	if err := s.cluster.Apply(ctx, kettle); err != nil {
		return "", err
	}
	if err := s.cluster.AwaitReady(ctx, namespace, ready); err != nil {
		return "", err
	}
	// A header that only the route knows: whoever answers it took the route.
	until := harness.Until{What: "the route acts on requests", Within: ready, InARow: 3}
	err := harness.Await(ctx, until, func(ctx context.Context) error {
		replies, err := s.pour(ctx, traffic.HTTPRequest{URL: "http://kettle:8080/", Header: map[string]string{"x-regular": "yes"}, Count: 5})
		if err == nil && who(replies)["kettle-v2"] != 5 {
			err = errors.New(told(who(replies)))
		}
		return err
	})
	if err != nil {
		return "", err
	}
	replies, err := s.pour(ctx, traffic.HTTPRequest{URL: "http://kettle:8080/", Count: cups})
	if err != nil {
		return "", err
	}
	count := who(replies)
	// Far more than chance takes away or adds.
	if v2 := count["kettle-v2"]; v2 < cups*share/3 || v2 > cups*share*2.5 || v2+count["kettle-v1"] != cups {
		return "", fmt.Errorf("of %d requests %s", cups, told(count))
	}
	return fmt.Sprintf("of %d requests over one connection: %s", cups, told(count)), nil
}

func (s *Show) header(ctx context.Context) (string, error) {
	replies, err := s.pour(ctx, traffic.HTTPRequest{URL: "http://kettle:8080/", Header: map[string]string{"x-regular": "yes"}, Count: 50})
	if err != nil {
		return "", err
	}
	if count := who(replies); count["kettle-v2"] != 50 {
		return "", errors.New(told(count))
	}
	return "50 of 50 requests with x-regular: yes went to kettle-v2", nil
}

func (s *Show) retry(ctx context.Context) (string, error) {
	const tries = 20
	bare, err := s.pour(ctx, traffic.HTTPRequest{URL: "http://kettle-v1:8080" + traffic.PathFlaky, Count: tries})
	if err != nil {
		return "", err
	}
	routed, err := s.pour(ctx, traffic.HTTPRequest{URL: "http://kettle:8080" + traffic.PathFlaky, Count: tries})
	if err != nil {
		return "", err
	}
	failed := who(bare)["503"]
	if failed == 0 || who(routed)["kettle-v1"] != tries {
		return "", fmt.Errorf("without the route %s; with it %s", told(who(bare)), told(who(routed)))
	}
	return fmt.Sprintf("a path that fails every other time: without the route %d of %d requests failed, with it none", failed, tries), nil
}

//go:embed nocellar.yaml
var noCellar []byte

func (s *Show) refusePath(ctx context.Context) (string, error) {
	open := traffic.HTTPRequest{URL: "http://kettle:8080/"}
	shut := traffic.HTTPRequest{URL: "http://kettle:8080/cellar/key?please"}
	before, err := s.pour(ctx, shut)
	if err != nil {
		return "", err
	}
	if status := before[0].Status; status != 200 {
		return "", fmt.Errorf("before the policy, status %d", status)
	}
	since := time.Now()
	if err := s.cluster.Apply(ctx, noCellar); err != nil {
		return "", err
	}
	until := harness.Until{What: "the path is refused", Within: ready, InARow: 3}
	err = harness.Await(ctx, until, func(ctx context.Context) error {
		refused, err := s.pour(ctx, shut)
		if err != nil {
			return err
		}
		served, err := s.pour(ctx, open)
		if err == nil && (refused[0].Status != 403 || served[0].Status != 200) {
			err = fmt.Errorf("the path %d, others %d", refused[0].Status, served[0].Status)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	line, err := s.refusal(ctx, since)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(s.Out, "        | %s\n", line)
	if err := s.cluster.Delete(ctx, noCellar); err != nil {
		return "", err
	}
	until = harness.Until{What: "the path is served again", Within: ready, InARow: 3}
	return "GET /cellar/key: 403 by AuthorizationPolicy no-cellar; / goes on; the waypoint's log names policy and caller", harness.Await(ctx, until, func(ctx context.Context) error {
		again, err := s.pour(ctx, shut)
		if err == nil && again[0].Status != 200 {
			err = fmt.Errorf("status %d", again[0].Status)
		}
		return err
	})
}

// refusal is a line of a waypoint's log about a request of the guest that the policy refused.
func (s *Show) refusal(ctx context.Context, since time.Time) (found string, err error) {
	until := harness.Until{What: "the refusal in the log of the waypoint", Within: time.Minute}
	err = harness.Await(ctx, until, func(ctx context.Context) error {
		pods, err := s.cluster.Pods(ctx, namespace, api.LabelGatewayName+"=waypoint")
		if err != nil {
			return err
		}
		for i := range pods {
			text, err := s.cluster.Logs(ctx, harness.Pod{Namespace: namespace, Name: pods[i].Name}, since)
			if err != nil {
				return err
			}
			for line := range strings.Lines(text) {
				if strings.Contains(line, "/ns/"+namespace+"/sa/") && strings.Contains(line, "denied by policy "+namespace+"/no-cellar") {
					found = strings.TrimSpace(line)
					return nil
				}
			}
		}
		return errors.New("no line names the policy and the guest")
	})
	return found, err
}

// counted matches a line of the requests that waypoints count.
var counted = regexp.MustCompile(`^istio_requests_total\{(.*)\} (\S+)$`)

func (s *Show) metrics(ctx context.Context) (string, error) {
	pods, err := s.cluster.Pods(ctx, namespace, api.LabelGatewayName+"=waypoint")
	if err != nil {
		return "", err
	}
	sums := map[string]float64{}
	for i := range pods {
		raw, err := s.cluster.GetFrom(ctx, harness.Pod{Namespace: namespace, Name: pods[i].Name}, fmt.Sprintf("127.0.0.1:%d", api.PortStats), "/stats/prometheus")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(raw)) {
			match := counted.FindStringSubmatch(strings.TrimSpace(line))
			if match == nil || !strings.Contains(match[1], `reporter="waypoint"`) {
				continue
			}
			value, err := strconv.ParseFloat(match[2], 64)
			if err != nil {
				return "", fmt.Errorf("metrics of %s: %w", pods[i].Name, err)
			}
			sums[label(match[1], "destination_workload")+", response_code "+label(match[1], "response_code")] += value
		}
	}
	var total float64
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(s.Out, "        | istio_requests_total reporter=waypoint, to %s: %.0f\n", name, sums[name])
		total += sums[name]
	}
	if total < cups {
		return "", fmt.Errorf("%d waypoints counted %.0f requests, want %d at least", len(pods), total, cups)
	}
	return fmt.Sprintf("%d waypoints counted %.0f requests, by destination and response code", len(pods), total), nil
}

// label is the value of a label in a line of metrics.
func label(labels, name string) string {
	_, rest, _ := strings.Cut(","+labels, ","+name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// dropWaypoint removes the waypoint, if there is one, and waits until its pods are gone.
func (s *Show) dropWaypoint(ctx context.Context) error {
	if err := s.ambit(ctx, "waypoint", "delete", "-n", namespace, "--all"); err != nil {
		return err
	}
	until := harness.Until{What: "the pods of the waypoint gone", Within: time.Minute}
	return harness.Await(ctx, until, func(ctx context.Context) error {
		pods, err := s.cluster.Pods(ctx, namespace, api.LabelGatewayName)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%s is still there", pods[0].Name)
		}
		return err
	})
}

func (s *Show) removeWaypoint(ctx context.Context) (string, error) {
	if err := s.dropWaypoint(ctx); err != nil {
		return "", err
	}
	// Without a route, either version answers, at layer 4.
	until := harness.Until{What: "requests go on", Within: time.Minute, InARow: 3}
	err := harness.Await(ctx, until, func(ctx context.Context) error {
		replies, err := s.pour(ctx, traffic.HTTPRequest{URL: "http://kettle:8080/"})
		if err == nil && who(replies)["kettle-v1"]+who(replies)["kettle-v2"] != 1 {
			err = errors.New(told(who(replies)))
		}
		return err
	})
	return "the kettle goes on answering, at layer 4", err
}
