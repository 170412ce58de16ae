package check

import (
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/waypoint"
)

// waypoints looks whether each is ready, and what keeps traffic from going through it.
func (c *checker) waypoints() {
	all, dangling, err := waypoint.Survey(c.ctx, c.cluster, c.mesh, c.only)
	if errors.Is(err, waypoint.ErrNoKinds) {
		c.ok("waypoints: the cluster does not know the kinds of the Gateway API")
		return
	}
	if err != nil {
		c.unseen(err)
		return
	}
	ready := 0
	for _, w := range all {
		if w.Programmed == "True" {
			ready++
		} else {
			c.fail(fmt.Sprintf("ambit waypoint status -n %s %s", w.Namespace, w.Name), "waypoint %s/%s is not ready (%s): %s", w.Namespace, w.Name, w.Reason, w.Message)
		}
		for _, a := range w.Advice {
			c.warn(a.Hint, "%s", a.Problem)
		}
	}
	for _, a := range dangling {
		c.warn(a.Hint, "%s", a.Problem)
	}
	if len(all) == 0 && len(dangling) == 0 {
		c.ok("nothing uses a waypoint (ambit waypoint apply -n NAMESPACE --enroll-namespace)")
	} else if ready > 0 {
		c.ok("%s ready", console.Plural(ready, "waypoint"))
	}
}
