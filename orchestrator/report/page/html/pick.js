"use strict";
// The rule of `cdsweep pick`: orchestrator/report/picked.py and orchestrator/frontier/bounds/mixing.py, in the same order and units.
(function (report) {
  const FEASIBLE = 1e-7; // of a linear program, as its solver there has it
  const HIGHEST = 1e4; // nats, of a lower bound

  /**
   * Minimise cost·v over v >= 0 by the simplex method on a tableau; few rows, many columns.
   * @param {number[]} cost one per variable
   * @param {{a: number[], sense: string, b: number}[]} rows with sense ">=", "<=" or "="
   * @returns {number[] | null} the variables; null if nothing is feasible
   */
  report.minimise = function (cost, rows) {
    const size = cost.length, slacks = rows.filter((row) => row.sense !== "=").length;
    const width = size + slacks + rows.length; // the last ones are artificial
    let slack = size;
    const table = rows.map((row, place) => {
      const line = new Float64Array(width + 1);
      line.set(row.a);
      if (row.sense !== "=") { line[slack] = row.sense === ">=" ? -1 : 1; slack += 1; }
      line[width] = row.b;
      if (row.b < 0) for (let column = 0; column <= width; column += 1) line[column] = -line[column];
      line[size + slacks + place] = 1;
      return line;
    });
    const basis = rows.map((_, place) => size + slacks + place);

    function pivot(goal, at, column) {
      const row = table[at], value = row[column];
      for (let each = 0; each <= width; each += 1) row[each] /= value;
      for (const other of [...table, goal]) {
        const factor = other[column];
        if (other === row || factor === 0) continue;
        for (let each = 0; each <= width; each += 1) other[each] -= factor * row[each];
        other[column] = 0;
      }
      basis[at] = column;
    }

    function run(goal, columns) {
      for (let turn = 0; turn < 5000; turn += 1) {
        let column = -1;
        for (let each = 0; each < columns; each += 1) {
          if (goal[each] < -1e-11 && (column < 0 || (turn < 500 && goal[each] < goal[column]))) {
            column = each; // after many turns the first one, which cannot cycle
            if (turn >= 500) break;
          }
        }
        if (column < 0) return;
        let at = -1, best = Infinity;
        table.forEach((row, place) => {
          if (row[column] <= 1e-11) return;
          const ratio = row[width] / row[column];
          if (ratio < best - 1e-15 || (ratio <= best + 1e-15 && at >= 0 && basis[place] < basis[at])) { best = ratio; at = place; }
        });
        if (at < 0) return; // unbounded: cannot be, all is in a simplex
        pivot(goal, at, column);
      }
    }

    const first = new Float64Array(width + 1);
    for (const row of table) for (let each = 0; each <= width; each += 1) first[each] -= each < size + slacks || each === width ? row[each] : 0;
    run(first, size + slacks);
    if (-first[width] > FEASIBLE) return null;
    basis.forEach((column, place) => {
      if (column < size + slacks) return;
      const other = table[place].findIndex((value, each) => each < size + slacks && Math.abs(value) > 1e-9);
      if (other >= 0) pivot(first, place, other);
    });
    const goal = new Float64Array(width + 1);
    goal.set(cost);
    basis.forEach((column, place) => {
      const factor = goal[column];
      if (factor !== 0) for (let each = 0; each <= width; each += 1) goal[each] -= factor * table[place][each];
    });
    run(goal, size + slacks);
    const found = new Array(size).fill(0);
    basis.forEach((column, place) => { if (column < size) found[column] = Math.max(table[place][width], 0); });
    return found;
  };

  /** Candidates as the rule sees them; made once per document. */
  report.picker = function (source) {
    const { rewards: names, units, rounding, negligible, ids, kl, reaches } = source;
    const places = names.map((_, at) => at), views = new Map();

    /** Candidates so many standard errors worse than measured; at 0 a feasible trial reaches its thresholds. */
    function seen(deviations) {
      if (!views.has(deviations)) {
        const worse = (row, at, sign) => row.map((value, each) => value + sign * deviations * source.reward_errors[at][each]);
        const least = source.rewards_measured.map((row, at) => (deviations === 0 ? reaches[at] : worse(row, at, -1)));
        views.set(deviations, {
          least,
          scaled: least.map((row) => row.map((value, each) => value / units[each])),
          most: source.rewards_measured.map((row, at) => worse(row, at, 1).map((value, each) => Math.max(value, reaches[at][each]))),
          klLeast: kl.map((value, at) => value - deviations * source.kl_errors[at]),
          klBound: kl.map((value, at) => value + deviations * source.kl_errors[at]),
          tangents: null,
        });
      }
      return views.get(deviations);
    }

    const asked = (thresholds) => names.map((name) => (report.known(thresholds[name]) ? thresholds[name] : -Infinity));

    function leastKl({ scaled, klBound }, bounds, mix, budget = null) {
      const wanted = places.filter((at) => Number.isFinite(bounds[at]));
      const limits = bounds.map((bound, at) => bound / units[at] - rounding);
      if (!mix) {
        let best = -1;
        scaled.forEach((row, at) => {
          if (wanted.every((each) => row[each] >= limits[each]) && (budget === null || klBound[at] <= budget) && (best < 0 || kl[at] < kl[best])) best = at;
        });
        return best < 0 ? null : kl.map((_, at) => (at === best ? 1 : 0));
      }
      return report.minimise(kl, [
        ...wanted.map((each) => ({ a: scaled.map((row) => row[each]), sense: ">=", b: limits[each] })),
        ...(budget === null ? [] : [{ a: klBound, sense: "<=", b: budget + rounding }]),
        { a: kl.map(() => 1), sense: "=", b: 1 },
      ]);
    }

    function largestImprovement({ scaled, klBound }, budget, improve, floor, mix) {
      const sought = places.filter((at) => improve[at] > 0), wanted = places.filter((at) => Number.isFinite(floor[at]));
      const start = source.rewards_measured[0];
      const step = improve.map((value, at) => value / units[at]), origin = start.map((value, at) => value / units[at]);
      const limits = floor.map((bound, at) => bound / units[at] - rounding);
      if (!mix) {
        let best = null;
        scaled.forEach((row, at) => {
          if (klBound[at] > budget || !wanted.every((each) => row[each] >= limits[each])) return;
          const gain = Math.min(...sought.map((each) => (row[each] - origin[each]) / step[each]));
          if (best === null || gain > best) best = gain;
        });
        return best;
      }
      const found = report.minimise([...kl.map(() => 0), -1, 1], [
        ...sought.map((each) => ({ a: [...scaled.map((row) => row[each]), -step[each], step[each]], sense: ">=", b: origin[each] })),
        ...wanted.map((each) => ({ a: [...scaled.map((row) => row[each]), 0, 0], sense: ">=", b: limits[each] })),
        { a: [...klBound, 0, 0], sense: "<=", b: budget },
        { a: [...kl.map(() => 1), 0, 0], sense: "=", b: 1 },
      ]);
      return found === null ? null : found[kl.length] - found[kl.length + 1];
    }

    function described(weights, bounds, deviations) {
      const members = places_of(weights);
      const total = members.reduce((sum, at) => sum + weights[at], 0);
      const shares = members.map((at) => weights[at] / total), view = seen(deviations);
      const mean = (values) => members.reduce((sum, at, place) => sum + shares[place] * values(at), 0);
      const named = (rows) => Object.fromEntries(names.map((name, each) => [name, mean((at) => rows[at][each])]));
      return {
        mixture: members.map((at, place) => ({ trial_id: ids[at], probability: shares[place] })),
        kl: mean((at) => kl[at]),
        kl_bound: mean((at) => view.klBound[at]),
        rewards: named(source.rewards_measured),
        rewards_bound: named(view.least),
        tangent: tangent(view, bounds),
      };
    }

    function places_of(weights) {
      return weights.map((_, at) => at).filter((at) => weights[at] >= negligible).sort((a, b) => weights[b] - weights[a] || a - b);
    }

    /** The largest tangent of the finished trials, nats: the least KL as far as training found its optima. */
    function tangent(view, bounds) {
      const spent = (slope, at) => slope.reduce((sum, price, each) => sum - price * view.most[at][each], view.klLeast[at]);
      view.tangents ??= source.multipliers.flatMap((slope, own) => {
        if (slope === null) return [];
        let offset = spent(slope, own) - source.distances[own];
        view.most.forEach((_, at) => { offset = Math.min(offset, spent(slope, at)); });
        return [{ slope, offset }];
      });
      const at = bounds.map((bound, each) => (Number.isFinite(bound) ? bound : source.rewards_measured[0][each]));
      let best = 0;
      for (const { slope, offset } of view.tangents) {
        if (slope.some((price, each) => price > 0 && !Number.isFinite(bounds[each]))) continue;
        best = Math.max(best, slope.reduce((sum, price, each) => sum + price * at[each], offset));
      }
      return Math.min(best, HIGHEST);
    }

    return {
      /** What `cdsweep pick` answers: a mixture with its figures, or `{refused}` in words. */
      pick(thresholds, budget, mix) {
        const floor = asked(thresholds), within = report.known(budget);
        if (!within && !floor.some(Number.isFinite)) return { refused: "Set a threshold or a KL budget to see what to take." };
        if (ids.length === 1) return { refused: "No trial has finished yet, so there is nothing to pick from." };
        const figures = floor.filter(Number.isFinite).length + (within ? 1 : 0), deviations = source.margins[figures - 1], view = seen(deviations);
        let bounds = floor;
        if (within) {
          const sought = new Set([...source.sought, ...(source.joined ? names.filter((name) => report.known(thresholds[name])) : [])]);
          const improve = names.map((name, at) => (sought.size === 0 || sought.has(name) ? source.deviations[at] : 0));
          const gain = largestImprovement(view, budget, improve, floor, mix);
          if (gain === null) {
            const needed = leastKl(view, floor, mix);
            if (needed === null) return { refused: out(view, floor, mix) };
            return { refused: `These thresholds need ${report.number(described(needed, floor, deviations).kl_bound)} nats with the trials that have finished, above the budget, both at 95 % confidence.` };
          }
          bounds = floor.map((bound, at) => (improve[at] > 0 ? Math.max(bound, source.rewards_measured[0][at] + gain * improve[at]) : bound));
        }
        const weights = leastKl(view, bounds, mix, within ? budget : null);
        return weights === null ? { refused: out(view, bounds, mix) } : described(weights, bounds, deviations);
      },
      /** Lower and upper bound of the least KL at thresholds, nats; the upper one null out of reach. */
      bounds(thresholds) {
        const bounds = asked(thresholds), weights = leastKl(seen(0), bounds, true);
        return [tangent(seen(0), bounds), weights === null ? null : weights.reduce((sum, share, at) => sum + share * kl[at], 0)];
      },
    };

    /** What comes nearest falls short by this, by the sum in units. */
    function out({ scaled }, bounds, mix) {
      const wanted = places.filter((at) => Number.isFinite(bounds[at])), limits = bounds.map((bound, at) => bound / units[at]);
      const short = (row) => wanted.map((each) => Math.max(limits[each] - row[each], 0));
      const total = (values) => values.reduce((sum, value) => sum + value, 0);
      let missing;
      if (mix) {
        const found = report.minimise([...kl.map(() => 0), ...wanted.map(() => 1)], [
          ...wanted.map((each, place) => ({ a: [...scaled.map((row) => row[each]), ...wanted.map((_, other) => (other === place ? 1 : 0))], sense: ">=", b: limits[each] })),
          { a: [...kl.map(() => 1), ...wanted.map(() => 0)], sense: "=", b: 1 },
        ]);
        missing = found.slice(kl.length);
      } else {
        missing = scaled.map(short).reduce((best, each) => (total(each) < total(best) ? each : best));
      }
      const told = wanted.map((each, place) => [names[each], missing[place] * units[each]]).filter(([, gap]) => gap > 0)
        .map(([name, gap]) => `${name} by ${report.number(gap)}`).join(", ");
      return `No finished trial${mix ? ", and no mixture of them," : ""} reaches these thresholds at 95 % confidence; the nearest misses ${told}.`;
    }
  };
})(window.cdsweepReport);
